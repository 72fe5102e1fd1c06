// What it takes to have the K/V of a history, by where it comes from and by the history's length.
// Called by bench/run-kv.ts.
import { availableParallelism } from 'node:os'
import { digestChain } from '../cache/digest.js'
import { userHash } from '../cache/key.js'
import { createKvCache, type KvCache } from '../cache/kv.js'
import { createMemoryCache } from '../cache/memory.js'
import { type OpenTier2, openTier2 } from '../cache/open-tier2.js'
import { randomHistory } from '../falcon/calibrate.js'
import { KV_CODECS, type KvCodecName } from '../model/engine/codec/graphs.js'
import { createEngine } from '../model/engine/create.js'
import type { Engine } from '../model/engine/engine.js'
import type { Bundle, Manifest } from '../model/manifest.js'
import { createRandom } from '../model/random.js'
import { type HistoryTokens, sliceTokens } from '../model/tokens.js'
import { until } from '../test/redis.js'
import type { BenchRedis } from './redis.js'
import { median } from './stats.js'

const ROUNDS = 11
const WARM_UP = 2
const EVENT_TOKENS = 2
const CONNECTIONS = 4
const TTL_MS = 3_600_000
const TIER1_BYTES = 2 ** 31
/** Tier 2 is asked whatever it costs, and waited for. */
const PATIENT = {
  policy: { kv: 'always' },
  prefillMs: () => 10_000,
  fetchMs: () => 10_000,
  observeFetch: () => {},
} as const

export type Arm = 'tier1' | 'append' | 'miss' | `${KvCodecName}` | `${KvCodecName}+append`

/** Medians in milliseconds, of all arms in turns. */
export type LatencyPoint = { readonly tokens: number; readonly ms: Readonly<Record<Arm, number>> }

export type LatencyResult = {
  readonly model: string
  readonly rounds: number
  readonly threads: number
  readonly points: readonly LatencyPoint[]
}

export async function benchLatency(
  bundle: Bundle,
  lengths: readonly number[],
  redis: BenchRedis,
  log: (line: string) => void,
): Promise<LatencyResult> {
  const { manifest } = bundle
  const threads = availableParallelism()
  const engine = await createEngine({ bundle, workers: 1, threadsPerWorker: threads })
  const tier2s = await Promise.all(
    KV_CODECS.map((codec) => connectedTier2(codec, manifest, engine, redis)),
  )
  const points: LatencyPoint[] = []
  try {
    const longest = randomHistory(manifest, manifest.config.maxTokens, createRandom(1))
    for (const tokens of lengths) {
      const arms = await armsAt(tokens, longest, manifest, engine, tier2s)
      const times = new Map<Arm, number[]>()
      for (let round = -WARM_UP; round < ROUNDS; round++) {
        for (const [arm, run] of arms) {
          const ms = await run(round + WARM_UP)
          if (round >= 0) times.set(arm, [...(times.get(arm) ?? []), ms])
        }
      }
      const ms = Object.fromEntries([...times].map(([arm, all]) => [arm, median(all)]))
      points.push({ tokens, ms: ms as LatencyPoint['ms'] })
      const shown = [...times].map(([arm, all]) => `${arm} ${median(all).toFixed(2)}`)
      log(`${manifest.name} ${tokens} tokens: ${shown.join(', ')} ms`)
    }
  } finally {
    for (const { tier2 } of tier2s) await tier2.close()
    await engine.close()
  }
  return { model: manifest.name, rounds: ROUNDS, threads, points }
}

type Tier2Arm = { readonly codec: KvCodecName; readonly tier2: OpenTier2 }

async function connectedTier2(
  codec: KvCodecName,
  manifest: Manifest,
  engine: Engine,
  { target }: BenchRedis,
): Promise<Tier2Arm> {
  let ready = 0
  const options = { target, connections: CONNECTIONS, codec, ttlMs: TTL_MS }
  const tier2 = await openTier2(options, manifest, engine, ({ kind }) => {
    if (kind === 'redisReady') ready++
  })
  await until('tier 2 to connect', () => ready > CONNECTIONS)
  return { codec, tier2 }
}

/** Each gives the milliseconds of one lookup; what must be there before is there before the clock starts. */
async function armsAt(
  tokens: number,
  longest: HistoryTokens,
  manifest: Manifest,
  engine: Engine,
  tier2s: readonly Tier2Arm[],
) {
  const { appendIsExact } = manifest
  const history = sliceTokens(longest, 0, tokens)
  const before = sliceTokens(longest, 0, tokens - EVENT_TOKENS)
  const memory = createMemoryCache(engine, TIER1_BYTES)
  const cache = createKvCache({ engine, memory, appendIsExact })
  const warm = userHash('warm')
  const arms = new Map<Arm, (round: number) => Promise<number>>()
  arms.set('tier1', async () => {
    const { lease } = await cache.obtain(warm, history)
    lease.done()
    return lookup(cache, 'warm', history, 1, 0)
  })
  // One user whose history grows up to this length: an append mostly finds room behind the past.
  const growing = createMemoryCache(engine, TIER1_BYTES)
  const growingCache = createKvCache({ engine, memory: growing, appendIsExact })
  const steps = Math.min(ROUNDS + WARM_UP, Math.floor(tokens / EVENT_TOKENS) - 1)
  arms.set('append', async (round) => {
    const left = steps - 1 - (round % steps)
    const end = tokens - EVENT_TOKENS * left
    if (round % steps === 0) {
      growing.clear()
      const { lease } = await growingCache.obtain(
        userHash('growing'),
        sliceTokens(longest, 0, end - EVENT_TOKENS),
      )
      lease.done()
    }
    return lookup(growingCache, 'growing', sliceTokens(longest, 0, end), 1, EVENT_TOKENS)
  })
  for (const { codec, tier2 } of tier2s) {
    const { remote } = tier2.cacheParts(PATIENT)
    const fetching = createKvCache({ engine, memory, appendIsExact, remote })
    for (const [arm, stored] of [
      [codec, history],
      [`${codec}+append`, before],
    ] as const) {
      const user = `${arm} ${tokens}`
      await save(tier2, engine, user, stored)
      arms.set(arm, () => {
        memory.clear()
        return lookup(fetching, user, history, 2, tokens - stored.length)
      })
    }
  }
  arms.set('miss', () => {
    memory.clear()
    return lookup(cache, 'nobody', history, undefined, tokens)
  })
  return arms
}

/** @throws where the K/V came from elsewhere than it should: another thing would be measured */
async function lookup(
  cache: KvCache,
  user: string,
  history: HistoryTokens,
  tier: 1 | 2 | undefined,
  prefilled: number,
): Promise<number> {
  const start = performance.now()
  const result = await cache.obtain(userHash(user), history)
  const ms = performance.now() - start
  result.lease.done()
  if (result.tier === tier && result.prefilledTokens === prefilled) return ms
  const got = `tier ${result.tier}, ${result.prefilledTokens} tokens prefilled`
  throw new Error(`${user}: expected tier ${tier}, ${prefilled} tokens prefilled, got ${got}`)
}

/** Writes a history's K/V to tier 2 as the service does, and waits for it. */
async function save(
  tier2: OpenTier2,
  engine: Engine,
  name: string,
  history: HistoryTokens,
): Promise<void> {
  const handle = await engine.prefill(history)
  const { written } = tier2.stats().writes
  await new Promise<void>((resolve) => {
    const done = () => {
      engine.release(handle)
      resolve()
    }
    tier2.writes.offer(userHash(name), { handle, chain: digestChain(history), done })
  })
  await until(`${name} to be written`, () => tier2.stats().writes.written > written)
}
