// What every K/V bench needs: a history, its K/V in Redis, and the calls on it.
import { type DigestChain, digestChain } from '../cache/digest.js'
import { type UserHash, userHash } from '../cache/key.js'
import { type Head, type PageShape, pageStrings } from '../cache/page.js'
import { createRedisKv, type RedisKv } from '../cache/redis-kv.js'
import { startRedisKv } from '../cache/redis-thread.js'
import { createSpareMemory } from '../cache/spare-memory.js'
import { createKvCodec } from '../model/engine/codec/codec.js'
import type { KvCodecName } from '../model/engine/codec/graphs.js'
import type { Engine } from '../model/engine/engine.js'
import { arrayWidths, kvShape } from '../model/engine/kv-shape.js'
import type { Manifest } from '../model/manifest.js'
import { type HistoryTokens, sliceTokens } from '../model/tokens.js'
import { until } from '../test/redis.js'
import type { BenchRedis } from './redis.js'

export type StoredUser = {
  readonly user: UserHash
  readonly history: HistoryTokens
  readonly chain: DigestChain
  readonly head: Head
}

const TTL_MS = 3_600_000
const SPARE_BYTES = 2 ** 27

export function pageShape(manifest: Manifest, codec: KvCodecName): PageShape {
  const { config } = manifest
  return { codec, ...kvShape(config), maxTokens: config.maxTokens }
}

function redisKvOptions(manifest: Manifest, codec: KvCodecName) {
  const { version, appendIsExact } = manifest
  return { version, appendIsExact, shape: pageShape(manifest, codec), ttlMs: TTL_MS }
}

/** Tier 2 in a thread of its own, as the service has it, connected. */
export async function openThread(
  redis: BenchRedis,
  manifest: Manifest,
  codec: KvCodecName,
  connections: number,
): Promise<RedisKv> {
  let ready = 0
  const kv = await startRedisKv(
    {
      target: redis.target,
      connections,
      codec,
      precision: manifest.precision,
      ...redisKvOptions(manifest, codec),
    },
    ({ kind }) => {
      if (kind === 'redisReady') ready++
    },
  )
  await until(`${connections + 1} connections`, () => ready > connections)
  return kv
}

/** Tier 2 on the calling thread. */
export async function openInThread(
  redis: BenchRedis,
  manifest: Manifest,
  codec: KvCodecName,
): Promise<RedisKv> {
  const options = redisKvOptions(manifest, codec)
  const kvCodec = createKvCodec(codec, manifest.precision, arrayWidths(options.shape))
  return createRedisKv({
    readers: [await redis.connect('bench-read', pageStrings(kvCodec.planeBytes))],
    writer: await redis.connect('bench-write'),
    codec: kvCodec,
    memory: createSpareMemory(SPARE_BYTES),
    ...options,
  })
}

/** Writes the K/V of the history's first `tokens` tokens as each user's; gives what a reader finds. */
export async function storeUsers(
  kv: RedisKv,
  engine: Engine,
  names: readonly string[],
  whole: HistoryTokens,
  tokens: number,
): Promise<StoredUser[]> {
  const history = sliceTokens(whole, 0, tokens)
  const chain = digestChain(history)
  const handle = await engine.prefill(history)
  const stored: StoredUser[] = []
  try {
    for (const name of names) {
      const user = userHash(name)
      const { layers } = await engine.exportKv(handle)
      const outcome = await kv.write(user, chain, await kv.head(user), { tokens, layers })
      const head = await kv.head(user)
      if (head === undefined) throw new Error(`${name}: expected a write, got ${outcome}`)
      stored.push({ user, history, chain, head })
    }
  } finally {
    engine.release(handle)
  }
  return stored
}

export async function storeUser(
  kv: RedisKv,
  engine: Engine,
  name: string,
  whole: HistoryTokens,
  tokens: number,
): Promise<StoredUser> {
  const [stored] = await storeUsers(kv, engine, [name], whole, tokens)
  if (stored === undefined) throw new Error(`${name} was not stored`)
  return stored
}

/** Head and all pages, as a lookup fetches them; their memory goes back. */
export async function fetchUser(kv: RedisKv, { user, history }: StoredUser): Promise<void> {
  const head = await kv.head(user)
  if (head === undefined) throw new Error('the head went away')
  const { tokens, done } = await kv.fetch(user, head, history.length)
  done()
  if (tokens === history.length) return
  throw new Error(`expected ${history.length} tokens, got ${tokens}`)
}
