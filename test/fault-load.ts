// Replicas over a real Redis, and a load on them that knows every right answer: what fault tests share.
import assert from 'node:assert/strict'
import { type Costs, createCosts } from '../cache/costs.js'
import { openTier2 } from '../cache/open-tier2.js'
import { parseRedisUrl } from '../cache/redis-url.js'
import { createRanker } from '../falcon/rank.js'
import type { RankResult } from '../falcon/types.js'
import { largestDifference } from '../falcon/verify.js'
import type { KvCodecName } from '../model/engine/codec/graphs.js'
import { createEngine, type EngineChoice } from '../model/engine/create.js'
import { createRandom } from '../model/random.js'
import type { RankInput } from '../model/request.js'
import { countHandles } from './engines.js'
import { type ModelFixture, randomRequest, type Scope } from './fixtures.js'
import { until } from './redis.js'

/** Largest logit difference that a codec may make; the largest seen here were 4e-7, 2e-4, 6e-3 and 2e-3. */
export const CODEC_ERROR: Readonly<Record<KvCodecName, number>> = {
  fp32: 1e-5,
  fp16: 1e-3,
  int8: 3e-2,
  bf16: 1e-2,
}

/** What a prefill is said to cost: a lookup may take so long, and 5 ms. Nobody here waits for speed. */
const PREFILL_MS = 90
const FETCH_MS = 30
const MICRO_BATCH = 3

export type Replica = Awaited<ReturnType<typeof openReplica>>

export type ReplicaOptions = {
  readonly codec?: KvCodecName
  readonly engine?: EngineChoice
  /** Of tier 1; so few when absent that every request asks Redis. */
  readonly maxKvBytes?: number
}

/** A prefill of 90 ms at any length, a fetch of 30 ms, whatever is measured. */
function patientCosts(maxTokens: number): Costs {
  const prefill = [1, 64].map((newTokens) => ({ newTokens, pastTokens: 0, ms: PREFILL_MS }))
  const costs = createCosts({ prefill, score: [], rank: [] }, { kv: 'always', maxTokens })
  costs.setFetch({ roundTripMs: FETCH_MS, bytesPerSec: 1e12, bytesPerToken: 1 })
  return { ...costs, observePrefill() {}, observeFetch() {} }
}

/** A ranker that fetches whatever Redis has. The test closes it, which finds handles that leaked. */
export async function openReplica(
  scope: Scope,
  { bundle }: Pick<ModelFixture, 'bundle'>,
  url: string,
  { codec = 'fp32', engine: choice = 'auto', maxKvBytes = 1 }: ReplicaOptions = {},
) {
  const one = { workers: 1, threadsPerWorker: 1 }
  const engine = countHandles(await createEngine({ bundle, engine: choice, ...one }))
  const events: string[] = []
  const tier2 = await openTier2(
    { target: parseRedisUrl(url), connections: 2, codec, ttlMs: 600_000 },
    bundle.manifest,
    engine,
    (event) => events.push(event.kind),
  )
  const ranker = createRanker({
    ...{ engine, bundle, tier2, maxKvBytes, microBatchSize: MICRO_BATCH },
    costs: patientCosts(bundle.manifest.config.maxTokens),
  })
  let closing: Promise<void> | undefined
  const close = async () => {
    closing ??= ranker.close()
    await closing
    assert.equal(engine.live(), 0, 'handles that nobody released')
  }
  scope.after(close)
  const ready = () => events.filter((kind) => kind === 'redisReady').length
  await until('the connections', () => ready() >= 3)
  return {
    rank: (input: RankInput) => ranker.rank(input, {}),
    tier2,
    events,
    codec,
    close,
    /** Waits until all that was offered is written, or was not to be. */
    written: () => until('the writes', () => tier2.stats().writes.queued === 0),
  }
}

const USERS = 6
/** More than a page of tokens, at two per event: a shorter history counts as a late one. */
const LEAST_EVENTS = 35
const MOST_EVENTS = 90
const ALL_EVENTS = 200
/** Share of requests that come late: with events missing that the one before had. */
const LATE = 0.1
const UNDER_WAY = 4

export type Oracle = Awaited<ReturnType<typeof createOracle>>

/** Scores without any cache: nothing fits tier 1, and there is no tier 2. Remembers its answers. */
export async function createOracle({ bundle, config }: ModelFixture) {
  const engine = await createEngine({ bundle, engine: 'node', workers: 1, threadsPerWorker: 1 })
  const { rank } = createRanker({ engine, bundle, microBatchSize: 100, maxKvBytes: 1 })
  const known = new Map<string, Promise<number[]>>()
  return {
    config,
    logits(input: RankInput): Promise<number[]> {
      const name = JSON.stringify(input)
      const logits = known.get(name) ?? rank(input, {}).then(logitsOf)
      known.set(name, logits)
      return logits
    },
    close: () => engine.close(),
  }
}

export type Load = ReturnType<typeof createLoad>

/** Users whose histories grow, lose their beginning and grow again; each answer is held to the oracle's. */
export function createLoad(oracle: Oracle, seed: number) {
  const random = createRandom(seed)
  const users = Array.from({ length: USERS }, (_, u) => ({
    whole: randomRequest(oracle.config, createRandom(u), {
      user: `u${u}`,
      events: ALL_EVENTS,
      candidates: 5,
    }),
    start: 0,
    events: LEAST_EVENTS + Math.floor(random() * (MOST_EVENTS - LEAST_EVENTS)),
  }))
  let answers = 0
  let worst = 0
  let awaited: { readonly count: number; readonly reached: () => void } | undefined

  const requestOf = ({ whole, start, events }: (typeof users)[number], lateBy = 0): RankInput => {
    const history = whole.histories[0]?.slice(start, start + events - lateBy) ?? []
    return { ...whole, histories: [history], time: (history.at(-1)?.time ?? 0) + 60 }
  }
  /** Ranks, and compares. Rejects when the answer fails or is wrong. */
  const check = async (replica: Replica, input: RankInput): Promise<RankResult> => {
    const result = await replica.rank(input)
    const difference = largestDifference(logitsOf(result), await oracle.logits(input))
    const limit = CODEC_ERROR[replica.codec]
    const what = `seed ${seed}, ${input.user.id} with ${input.histories[0]?.length} events`
    assert.ok(difference <= limit, `${what}: off by ${difference} > ${limit}`)
    answers++
    if (answers === awaited?.count) awaited.reached()
    worst = Math.max(worst, difference)
    return result
  }
  const step = async (replica: Replica) => {
    const user = users[Math.floor(random() * USERS)] ?? users[0]
    assert.ok(user !== undefined)
    if (random() < 0.5) user.events++
    if (user.events > MOST_EVENTS) {
      user.start++
      user.events = LEAST_EVENTS
    }
    await check(replica, requestOf(user, random() < LATE ? 3 : 0))
  }

  return {
    answers: () => answers,
    worst: () => worst,
    /** The users' newest histories. */
    requests: () => users.map((user) => requestOf(user)),
    check,
    /**
     * Keeps requests under way while `work` runs, which waits for so many further answers. Rejects
     * with the first request that fails or is wrong.
     */
    async during(
      replicas: readonly Replica[],
      work: (further: (count: number) => Promise<void>) => Promise<void>,
    ): Promise<void> {
      let isOver = false
      const callers = Array.from({ length: UNDER_WAY }, async (_, c) => {
        const replica = replicas[c % replicas.length]
        assert.ok(replica !== undefined)
        while (!isOver) await step(replica)
      })
      const further = (count: number) =>
        new Promise<void>((reached) => {
          awaited = { count: answers + count, reached }
        })
      const failed = Promise.all(callers)
      try {
        await Promise.race([work(further), failed])
      } finally {
        isOver = true
        await Promise.allSettled(callers)
      }
      await failed
    },
    /** Asks until every user's K/V is found in Redis: nobody helps. */
    async untilHits(replica: Replica): Promise<void> {
      for (const input of users.map((user) => requestOf(user))) {
        let fault: unknown
        await until(`a hit in tier 2 for ${input.user.id}`, async () => {
          const { kv } = await check(replica, input).catch((error) => {
            fault = error
            return { kv: { tier: 2, prefilledTokens: 0 } }
          })
          await replica.written()
          return kv.tier === 2 && kv.prefilledTokens === 0
        })
        assert.ifError(fault)
      }
    },
  }
}

/** In the order of the candidates. */
function logitsOf({ items }: RankResult): number[] {
  return items.toSorted((a, b) => a.index - b.index).flatMap(({ logits }) => logits)
}
