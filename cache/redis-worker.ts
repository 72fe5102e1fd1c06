// Entry of tier 2's thread: the connections and the checks of every byte. The event loop of the HTTP
// server sees none of it but the K/V that an engine can take, in memory that both share.
import { parentPort, workerData } from 'node:worker_threads'
import { createKvCodec } from '../model/engine/codec/codec.js'
import { arrayWidths } from '../model/engine/kv-shape.js'
import { RankError, toWire } from '../model/errors.js'
import { pageStrings } from './page.js'
import { connectRedis, type RedisClient } from './redis.js'
import { createRedisKv, type FetchedKv, type RedisKv } from './redis-kv.js'
import type { Call, FromThread, LentKv, RedisThreadOptions, ToThread } from './redis-protocol.js'
import type { LongStrings } from './redis-receiver.js'
import { createSpareMemory } from './spare-memory.js'

/** Planes of four fetches of 25 MB as float32: what is under way at a time. */
const SPARE_BYTES = 128 * 2 ** 20
/** A net under lost replies: callers have budgets of their own, and far shorter ones. */
const COMMAND_TIMEOUT_MS = 2_000

const options: RedisThreadOptions = workerData
const calls = new Map<number, AbortController>()
/** Memory of what was fetched, by the call that it answers, until it comes back as `spare`. */
const lent = new Map<number, () => void>()

function post(message: FromThread): void {
  parentPort?.postMessage(message)
}

function connect(role: string, longStrings?: LongStrings): RedisClient {
  return connectRedis(options.target, {
    role,
    ...(longStrings !== undefined && { longStrings }),
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
    if (isFetched(value)) {
      const { done, ...fetched } = value
      lent.set(id, done)
      post({ kind: 'done', id, value: { ...fetched, id } satisfies LentKv })
    } else post({ kind: 'done', id, value })
  } catch (error) {
    post({ kind: 'error', id, error: toWire(error) })
  } finally {
    calls.delete(id)
  }
}

function isFetched(value: unknown): value is FetchedKv {
  return typeof value === 'object' && value !== null && 'planes' in value
}

function main(): void {
  const { connections, codec, precision, version, shape, appendIsExact, ttlMs } = options
  const kvCodec = createKvCodec(codec, precision, arrayWidths(shape))
  const pages = pageStrings(kvCodec.planeBytes)
  const kv = createRedisKv({
    readers: Array.from({ length: connections }, (_, i) => connect(`kv-read-${i}`, pages)),
    writer: connect('kv-write'),
    codec: kvCodec,
    memory: createSpareMemory(SPARE_BYTES),
    ...{ version, shape, appendIsExact, ttlMs },
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
        lent.get(message.id)?.()
        lent.delete(message.id)
        return
      case 'close':
        void kv.close().then(() => parentPort?.close())
    }
  })
  post({ kind: 'ready' })
}

main()
