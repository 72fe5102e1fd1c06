// Where the milliseconds of a tier-2 hit go at the longest history. Called by bench/run-kv.ts.
import { PAGE_TOKENS } from '../cache/digest.js'
import { kvKey, kvVariant } from '../cache/key.js'
import {
  checksumSeed,
  openPage,
  pageFields,
  pageSeed,
  pageStrings,
  pageTokens,
} from '../cache/page.js'
import type { RedisClient } from '../cache/redis.js'
import { IN_FLIGHT, type RedisKv } from '../cache/redis-kv.js'
import { encodedKv } from '../cache/remote.js'
import { arraysIn, createSpareMemory } from '../cache/spare-memory.js'
import { randomHistory } from '../falcon/calibrate.js'
import { KV_CODECS, type KvCodecName, planeBytes } from '../model/engine/codec/graphs.js'
import { createEngine } from '../model/engine/create.js'
import type { Engine } from '../model/engine/engine.js'
import { arrayWidths } from '../model/engine/kv-shape.js'
import type { Bundle } from '../model/manifest.js'
import { createRandom } from '../model/random.js'
import { openInThread, openThread, pageShape, type StoredUser, storeUser } from './kv-user.js'
import type { BenchRedis } from './redis.js'
import { median } from './stats.js'

const ROUNDS = 15
const WARM_UP = 2
const MAX_CHUNK_BYTES = 2 ** 21

export type Stage = { readonly codec: KvCodecName; readonly what: string; readonly ms: number }

export type StagesResult = {
  readonly tokens: number
  readonly bytes: Readonly<Record<KvCodecName, number>>
  readonly stages: readonly Stage[]
  /** Reading alone by bytes per command and commands on their way, of the codec `fp16`. */
  readonly chunks: readonly {
    readonly chunkBytes: number
    readonly inFlight: number
    readonly ms: number
  }[]
}

export async function benchStages(
  bundle: Bundle,
  redis: BenchRedis,
  log: (line: string) => void,
): Promise<StagesResult> {
  const { manifest } = bundle
  const tokens = manifest.config.maxTokens
  const history = randomHistory(manifest, tokens, createRandom(1))
  const engine = await createEngine({ bundle, workers: 1 })
  const client = await redis.connect('bench-stages')
  const stages: Stage[] = []
  const chunks: { chunkBytes: number; inFlight: number; ms: number }[] = []
  const bytes = { fp32: 0, fp16: 0, int8: 0, bf16: 0 }
  try {
    for (const codec of KV_CODECS) {
      const thread = await openThread(redis, manifest, codec, 1)
      const inThread = await openInThread(redis, manifest, codec)
      const stored = await storeUser(inThread, engine, `stages ${codec}`, history, tokens)
      const reply = await pagesOf(client, bundle, codec, stored)
      bytes[codec] = reply.pages.reduce((sum, page) => sum + page.length, 0)
      const strings = pageStrings(planeBytes(codec, arrayWidths(pageShape(manifest, codec))))
      const reader = await redis.connect('bench-stages-read', strings)
      const tasks = await tasksOf({
        bundle,
        codec,
        engine,
        reader,
        stored,
        reply,
        inThread,
        thread,
      })
      for (const [what, ms] of await inTurns(tasks)) {
        stages.push({ codec, what, ms })
        log(`${codec} ${what}: ${ms.toFixed(1)} ms`)
      }
      if (codec === 'fp16') {
        const many = { ...strings, perReply: Math.ceil(MAX_CHUNK_BYTES / strings.bytes) }
        const sweeper = await redis.connect('bench-stages-sweep', many)
        const sweeps = new Map<string, () => Promise<unknown>>()
        for (const chunkBytes of [2 ** 19, 2 ** 20, MAX_CHUNK_BYTES]) {
          for (const inFlight of [1, 2, 4]) {
            const size = Math.max(1, Math.floor(chunkBytes / (reply.pages[0]?.length ?? 1)))
            sweeps.set(`${chunkBytes} ${inFlight}`, () =>
              read(sweeper, reply.key, reply.fields, size, inFlight),
            )
          }
        }
        for (const [what, ms] of await inTurns(sweeps)) {
          const [chunkBytes = 0, inFlight = 0] = what.split(' ').map(Number)
          chunks.push({ chunkBytes, inFlight, ms })
        }
      }
      await thread.close()
      await inThread.close()
    }
  } finally {
    await engine.close()
  }
  return { tokens, bytes, stages, chunks }
}

type Reply = { readonly key: string; readonly fields: readonly string[]; readonly pages: Buffer[] }

async function pagesOf(
  client: RedisClient,
  { manifest }: Bundle,
  codec: KvCodecName,
  { user, chain }: StoredUser,
): Promise<Reply> {
  const key = kvKey(kvVariant(manifest.version, codec), user)
  const fields = pageFields(chain, manifest.appendIsExact)
  const pages = await client.hmgetBuffer(key, ...fields)
  return { key, fields, pages: pages.filter((page) => page !== null) }
}

/** The pages' bytes and nothing else, as a fetch asks for them. */
async function read(
  client: RedisClient,
  key: string,
  fields: readonly string[],
  pagesPerChunk: number,
  inFlight: number,
): Promise<void> {
  const count = Math.ceil(fields.length / pagesPerChunk)
  const ask = (c: number) =>
    client.hmgetBuffer(key, ...fields.slice(c * pagesPerChunk, (c + 1) * pagesPerChunk))
  const reads = Array.from({ length: Math.min(inFlight, count) }, (_, c) => ask(c))
  for (let c = 0; c < count; c++) {
    await reads[c]
    if (c + inFlight < count) reads.push(ask(c + inFlight))
  }
}

type Parts = {
  readonly bundle: Bundle
  readonly codec: KvCodecName
  readonly engine: Engine
  /** As the thread's. */
  readonly reader: RedisClient
  readonly stored: StoredUser
  readonly reply: Reply
  readonly inThread: RedisKv
  readonly thread: RedisKv
}

/** Each stage alone on its true input, and the whole. */
async function tasksOf(parts: Parts): Promise<ReadonlyMap<string, () => Promise<unknown>>> {
  const { bundle, engine, reader, stored, reply, inThread, thread } = parts
  const { manifest } = bundle
  const { user, head, history } = stored
  const tokens = history.length
  const shape = pageShape(manifest, parts.codec)
  const seed = pageSeed(shape, checksumSeed(manifest.version, user))
  // Lent until the bench ends: what an engine gets.
  const fetched = await inThread.fetch(user, head, tokens)
  const kv = encodedKv(fetched, history)
  const widths = planeBytes(parts.codec, arrayWidths(shape))
  const { arrays } = arraysIn(
    createSpareMemory(0),
    widths.map((bytes) => tokens * bytes),
  )
  const whole = async (kv: RedisKv) => {
    const fetched = await kv.fetch(user, head, tokens)
    engine.release(await engine.importKv(encodedKv(fetched, history)))
    fetched.done()
  }
  return new Map<string, () => Promise<unknown>>([
    ['head', () => thread.head(user)],
    [
      'receive',
      () => read(reader, reply.key, reply.fields, pageStrings(widths).perReply, IN_FLIGHT),
    ],
    [
      'checksums',
      async () => {
        for (const [i, page] of reply.pages.entries()) {
          openPage(reply.fields[i] ?? '', page, page.length - 4, seed)
        }
      },
    ],
    [
      'assemble',
      async () => {
        for (const [i, page] of reply.pages.entries()) {
          const count = pageTokens(stored.chain, i)
          let at = 0
          for (const [p, bytes] of widths.entries()) {
            const rows = page.subarray(at, at + count * bytes)
            arrays[p]?.set(rows, i * PAGE_TOKENS * bytes)
            at += rows.length
          }
        }
      },
    ],
    ['import and decode', async () => engine.release(await engine.importKv(kv))],
    [
      'head, fetch and import, calling thread',
      () => inThread.head(user).then(() => whole(inThread)),
    ],
    ['head, fetch and import, own thread', () => thread.head(user).then(() => whole(thread))],
  ])
}

async function inTurns(
  tasks: ReadonlyMap<string, () => Promise<unknown>>,
): Promise<ReadonlyMap<string, number>> {
  const times = new Map<string, number[]>()
  for (let round = -WARM_UP; round < ROUNDS; round++) {
    for (const [what, run] of tasks) {
      const start = performance.now()
      await run()
      const ms = performance.now() - start
      if (round >= 0) times.set(what, [...(times.get(what) ?? []), ms])
    }
  }
  return new Map([...times].map(([what, all]) => [what, median(all)]))
}
