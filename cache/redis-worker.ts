// Entry of tier 2's thread: the connections, the checks of every byte and the codec. The event loop of
// the HTTP server sees none of it but the K/V that an engine can take.
import { parentPort, workerData } from 'node:worker_threads'
import { createKvCodec } from '../model/engine/codec/codec.js'
import { RankError, toWire } from '../model/errors.js'
import { arrayWidths } from './page.js'
import { connectRedis, type RedisClient } from './redis.js'
import { createRedisKv, type FetchedRows, type RedisKv } from './redis-kv.js'
import type { Call, FromThread, RedisThreadOptions, ToThread } from './redis-protocol.js'
import { createSpareMemory } from './spare-memory.js'

/** Rows of two fetches of 12 MB as float16, 25 MB as float32: what is under way at a time. */
const SPARE_BYTES = 128 * 2 ** 20
/** A net under lost replies: callers have budgets of their own, and far shorter ones. */
const COMMAND_TIMEOUT_MS = 2_000

const options: RedisThreadOptions = workerData
const calls = new Map<number, AbortController>()

function post(message: FromThread, transfer: ArrayBuffer[] = []): void {
  parentPort?.postMessage(message, transfer)
}

function connect(role: string): RedisClient {
  return connectRedis(options.target, {
    role,
    commandTimeoutMs: COMMAND_TIMEOUT_MS,
    onEvent: (event) => post({ kind: 'event', event }),
  })
}

function run(kv: RedisKv, { method, args }: Call, signal: AbortSignal): Promise<unknown> {
  switch (method) {
    case 'head':
      return kv.head(args[0], signal)
    case 'fetch':
      return kv.fetch(args[0], args[1], args[2], signal)
    case 'write':
      return kv.write(...args)
    case 'forget':
      return kv.forget(...args)
  }
}

async function answer(kv: RedisKv, id: number, call: Call): Promise<void> {
  const controller = new AbortController()
  calls.set(id, controller)
  try {
    const value = await run(kv, call, controller.signal)
    post({ kind: 'done', id, value: plain(value) }, buffersIn(value))
  } catch (error) {
    post({ kind: 'error', id, error: toWire(error) })
  } finally {
    calls.delete(id)
  }
}

/** Fetched rows travel without a copy; nobody else holds them. They come back as `spare`. */
function buffersIn(value: unknown): ArrayBuffer[] {
  if (!isRows(value)) return []
  const buffers = value.layers.flatMap(({ k, v }) => [k.buffer, v.buffer])
  return [...new Set(buffers)].filter((buffer) => buffer instanceof ArrayBuffer)
}

/** Functions do not travel. */
function plain(value: unknown): unknown {
  return isRows(value) ? { tokens: value.tokens, layers: value.layers } : value
}

function isRows(value: unknown): value is FetchedRows {
  return typeof value === 'object' && value !== null && 'layers' in value
}

async function main(): Promise<void> {
  const { connections, codec, precision, version, shape, appendIsExact, ttlMs } = options
  const memory = createSpareMemory(SPARE_BYTES)
  const kv = createRedisKv({
    readers: Array.from({ length: connections }, (_, i) => connect(`kv-read-${i}`)),
    writer: connect('kv-write'),
    codec: await createKvCodec(codec, precision, arrayWidths(shape)),
    ...{ version, shape, appendIsExact, ttlMs, memory },
  })
  parentPort?.on('message', (message: ToThread) => {
    switch (message.kind) {
      case 'call':
        void answer(kv, message.id, message.call)
        return
      case 'cancel':
        calls.get(message.id)?.abort(new RankError('CANCELLED', 'nobody waits for it'))
        return
      case 'spare':
        for (const buffer of message.buffers) memory.give(buffer)
        return
      case 'close':
        void kv.close().then(() => parentPort?.close())
    }
  })
  post({ kind: 'ready' })
}

await main()
