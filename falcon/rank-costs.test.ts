import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import type { Costs } from '../cache/costs.js'
import { choice, decide, type KvPolicy, type Prices } from '../cache/decide.js'
import type { Engine } from '../model/engine/engine.js'
import { createNodeEngine } from '../model/engine/node/pool.js'
import { RankError } from '../model/errors.js'
import { createRandom } from '../model/random.js'
import type { RankInput } from '../model/request.js'
import { exportModel, randomRequest } from '../test/fixtures.js'
import { slowEngine } from '../test/slow-engine.js'
import { createRanker, type RankerOptions } from './rank.js'

const model = exportModel({ after })

let engine: Engine
before(async () => {
  engine = await createNodeEngine({ bundle: model.bundle })
})
after(() => engine.close())

const ranker = (changes: Partial<RankerOptions> = {}) =>
  createRanker({ engine, bundle: model.bundle, microBatchSize: 2, maxKvBytes: 1e9, ...changes })

const request = (events: number, candidates: number, seed = 1, user = 'u') =>
  randomRequest(model.config, createRandom(seed), { user, events, candidates })

/** Costs of 1 ms per token and 10 per micro-batch or pass, `passMs` more or less for one pass. */
function plainCosts(policy: KvPolicy, passMs = 0) {
  const seen: string[] = []
  const prices: Prices = {
    prefillMs: (tokens) => tokens,
    scoreMs: () => 10,
    rankMs: (_, tokens) => tokens + 10 + passMs,
    fetchMs: () => undefined,
  }
  const costs: Costs = {
    ...prices,
    policy,
    setFetch: () => {},
    observePrefill: (tokens, past, ms) => seen.push(`prefill ${tokens} behind ${past}: ${ms} ms`),
    observeScore: (m, tokens, ms) => seen.push(`score ${m} on ${tokens}: ${ms} ms`),
    observeRank: (m, tokens, ms) => seen.push(`rank ${m} with ${tokens}: ${ms} ms`),
    observeFetch: () => {},
    decide: (question) => decide(prices, policy, question),
    priceOf: (decision, question) => choice(prices, decision, question),
    breakEvenTokens: () => undefined,
    stats: () => ({
      breakEvenTokens: undefined,
      fetchBytesPerSec: undefined,
      prefillTokensPerSec: 1000,
    }),
  }
  return { costs, seen: () => seen.splice(0) }
}

describe('rank and its costs', () => {
  const decisionsOf = async (own: ReturnType<typeof createRanker>, inputs: RankInput[]) => {
    const decisions: (string | undefined)[] = []
    for (const input of inputs) decisions.push((await own.rank(input, {})).kv.decision)
    return decisions
  }
  const full = request(9, 2)
  const short = { ...full, histories: full.histories.map((history) => history.slice(0, 5)) }
  const inputs = [short, full, full, request(9, 3), request(0, 1), request(0, 3)]

  test('keep K/V wherever there is an event, or none at all, or as the costs say', async () => {
    const kept = ['recompute', 'append', 'hit', 'hit', 'onePass', 'recompute']
    const unkept = ['onePass', 'onePass', 'onePass', 'recompute', 'onePass', 'recompute']
    for (const [policy, passMs, expected, entries] of [
      [{ kv: 'always' }, -9, kept, 1],
      [{ kv: 'auto' }, 0, kept, 1],
      // One pass leaves nothing for the three candidates, whose two micro-batches it cannot hold.
      [{ kv: 'auto' }, -20, ['onePass', 'onePass', 'onePass', ...unkept.slice(3)], 1],
      [{ kv: 'auto', keepsKv: true }, -20, kept, 1],
      [{ kv: 'auto', keepsKv: false }, 0, unkept, 1],
      [{ kv: 'never' }, 0, unkept, 0],
    ] as const) {
      const own = ranker({ costs: plainCosts(policy, passMs).costs })
      const what = JSON.stringify(policy)
      assert.deepEqual(await decisionsOf(own, inputs), expected, what)
      assert.equal(own.stats().cache.entries, entries, what)
      assert.equal(own.stats().costs?.prefillTokensPerSec, 1000)
    }
    assert.deepEqual(await decisionsOf(ranker(), inputs), kept, 'without costs')
    assert.equal(ranker().stats().costs, undefined)
  })

  test('look into tier 1 before one pass where it is only predicted to be cheaper', async () => {
    const { costs } = plainCosts({ kv: 'auto' }, -20)
    const own = ranker({ costs })
    // Three candidates do not fit b = 2, so that the first leaves K/V.
    assert.deepEqual(await decisionsOf(own, [request(9, 3), full, request(4, 2, 1, 'other')]), [
      'recompute',
      'hit',
      'onePass',
    ])
  })

  test('are predicted and measured for K/V and scores together, and give the same scores', async () => {
    const { costs } = plainCosts({ kv: 'always' })
    const { rank } = ranker({ ...slowEngine(engine), costs })
    const once = async (input: RankInput) => {
      const { kv, items } = await rank(input, {})
      return { ms: [kv.predictedMs, kv.measuredMs], items }
    }
    // 20 tokens, 2 micro-batches; the clock says 1 ms per prefill and 5 per run.
    const miss = await once(request(9, 3))
    assert.deepEqual(miss.ms, [20 + 20, 1 + 10])
    const hit = await once(request(9, 3))
    assert.deepEqual(hit.ms, [20, 10])
    assert.deepEqual(hit.items, miss.items)
    assert.deepEqual((await once(request(0, 2))).ms, [2 + 10, 5])
    assert.deepEqual((await ranker().rank(request(9, 3), {})).items, miss.items)
    const late = await ranker({ costs }).rank(request(9, 3), { deadlineMs: 0, partial: true })
    assert.deepEqual([late.kv.decision, late.kv.predictedMs], [undefined, undefined])
  })

  test('hear of every run that succeeds, with its time, and of no other', async () => {
    const { costs, seen } = plainCosts({ kv: 'auto' })
    const { rank } = ranker({ ...slowEngine(engine), costs })
    await rank(short, {})
    assert.deepEqual(seen(), ['prefill 12 behind 0: 1 ms', 'score 2 on 12: 5 ms'])
    await rank({ ...full, candidates: request(1, 3).candidates }, {})
    assert.deepEqual(seen(), [
      'prefill 8 behind 12: 1 ms',
      'score 1 on 20: 5 ms',
      'score 2 on 20: 5 ms',
    ])
    await rank(request(0, 2), {})
    assert.deepEqual(seen(), ['rank 2 with 2: 5 ms'])
    const broken: Engine = {
      ...engine,
      score: () => Promise.reject(new RankError('WORKER_CRASHED', 'as asked')),
    }
    await assert.rejects(ranker({ engine: broken, costs }).rank(full, {}), {
      code: 'WORKER_CRASHED',
    })
    assert.equal(seen().filter((run) => run.startsWith('score')).length, 0)
  })

  test('are known before the ranking, which is then taken for as much', async () => {
    const { costs } = plainCosts({ kv: 'auto' }, -9)
    const own = ranker({ costs })
    for (const input of inputs) {
      const predicted = own.predictMs(input, {})
      const { kv } = await own.rank(input, {})
      assert.equal(predicted, kv.predictedMs, kv.decision)
    }
    assert.equal(own.predictPrefetchMs(full, {}), 0, 'it is there')
    const { predictMs, predictPrefetchMs } = ranker({ costs })
    assert.equal(predictPrefetchMs(full, {}), 20)
    const stored = { ...full, histories: [] }
    assert.equal(predictMs(stored, { useStored: true }), 66 + 10, 'the longest, unread')
    assert.equal(ranker().predictMs(full, {}), undefined, 'without costs')
  })
})

test('what a request waited before the call counts for its deadline', async () => {
  const late = ranker().rank(request(9, 3), { deadlineMs: 50, waitedMs: 60 })
  await assert.rejects(late, {
    code: 'DEADLINE_EXCEEDED',
    message: /^deadlineMs 50 passed after 6\d/,
  })
})

test('says how many requests keep the engine busy', () => {
  const stats = (depth?: number) => () => ({
    ...{ workers: 2, pendingJobs: 0, restarts: 0 },
    ...(depth !== undefined && { depth }),
  })
  const depthOf = (depth?: number) => ranker({ engine: { ...engine, stats: stats(depth) } }).depth()
  assert.deepEqual(depthOf(), { runs: 2, requests: 3 })
  assert.deepEqual(depthOf(9), { runs: 2, requests: 9 })
})
