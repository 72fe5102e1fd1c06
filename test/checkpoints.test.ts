// Models of the public code behind the whole pipeline: scores depend on the request alone, whatever was
// cached, and K/V is reused exactly where its variant allows.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createRanker } from '../falcon/rank.js'
import type { RankResult } from '../falcon/types.js'
import { largestDifference, verifyBundle } from '../falcon/verify.js'
import { parseConfig } from '../model/config.js'
import { createRandom } from '../model/random.js'
import type { RankInput } from '../model/request.js'
import { TOLERANCE } from '../model/vectors.js'
import { KINDS, openEngine } from './engines.js'
import { exportModel, type ModelFixture, randomRequest, type Scope, tokensOf } from './fixtures.js'
import { SMALL_DLRM, SMALL_RESEARCH } from './small-checkpoints.js'

const MODELS = { research: SMALL_RESEARCH, 'dlrm-v3': SMALL_DLRM }
const SLACK = 3

/** Logits in the request's order. */
function logitsOf({ items }: RankResult): number[] {
  return items.toSorted((a, b) => a.index - b.index).flatMap(({ logits }) => logits)
}

async function openRanker(scope: Scope, model: ModelFixture, kind: (typeof KINDS)[number]) {
  const engine = await openEngine(kind, model)
  const { bundle } = model
  const options = { microBatchSize: 4, maxKvBytes: 2 ** 20, slackEvents: SLACK }
  const ranker = createRanker({ engine, bundle, ...options })
  scope.after(() => ranker.close())
  return ranker
}

function oracle(model: ModelFixture, request: RankInput): Float64Array {
  const { history, candidates, queryTime } = tokensOf(request, model.vocabulary, SLACK)
  return model.reference(history, candidates, queryTime).logits
}

for (const [variant, stated] of Object.entries(MODELS)) {
  for (const kind of KINDS) {
    describe(`${variant} on engine ${kind}`, () => {
      test('every bundle’s own test vectors hold in both precisions', async (t) => {
        for (const precision of ['fp32', 'fp16'] as const) {
          const model = exportModel(t, { config: parseConfig(stated), precision })
          const engine = await openEngine(kind, model)
          t.after(() => engine.close())
          const { cases, maxDifference } = await verifyBundle(engine, model.bundle)
          assert.ok(cases >= 5 && maxDifference <= TOLERANCE[precision])
        }
      })

      test('a growing history, across the window’s end, scores as the oracle says at every step', async (t) => {
        const model = exportModel(t, { config: parseConfig(stated) })
        const ranker = await openRanker(t, model, kind)
        const shape = { events: 45, candidates: 7 }
        const whole = randomRequest(model.config, createRandom(11), shape)
        const events = whole.histories.flat()
        const states = new Set<string>()
        for (let n = 0; n <= events.length; n += n === 0 || n > 25 ? 1 : 4) {
          const known = events.slice(0, n)
          const request = { ...whole, histories: [known], time: (known.at(-1)?.time ?? 0) + 60 }
          const result = await ranker.rank(request, {})
          states.add(result.kv.state)
          const difference = largestDifference(logitsOf(result), oracle(model, request))
          assert.ok(difference <= TOLERANCE.fp32, `${n} events: ${difference}`)
        }
        assert.equal(states.has('stale'), variant === 'research', [...states].join())
      })

      test('candidates neither see each other nor care for their order or micro-batch', async (t) => {
        const model = exportModel(t, { config: parseConfig(stated) })
        const ranker = await openRanker(t, model, kind)
        const request = randomRequest(model.config, createRandom(3), { events: 12, candidates: 9 })
        const all = await ranker.rank(request, {})
        const tasks = model.config.tasks.length
        const turned = { ...request, candidates: request.candidates.toReversed().slice(0, 5) }
        const some = logitsOf(await ranker.rank(turned, {}))
        const expected = Array.from({ length: 5 }, (_, i) =>
          logitsOf(all).slice((8 - i) * tasks, (9 - i) * tasks),
        )
        assert.ok(largestDifference(some, expected.flat()) <= 1e-6)
      })
    })
  }
}

describe('K/V of a research model', () => {
  test('is a hit at every later time, also after the last event’s own row changed', async (t) => {
    const model = exportModel(t, { config: parseConfig(SMALL_RESEARCH) })
    const ranker = await openRanker(t, model, 'capi')
    const request = randomRequest(model.config, createRandom(5), { events: 10, candidates: 5 })
    await ranker.rank(request, {})
    for (const seconds of [0, 1, 86_400, 1e8, -500]) {
      const later = { ...request, time: request.time + seconds }
      const result = await ranker.rank(later, {})
      assert.equal(result.kv.state, 'hit', `${seconds}`)
      assert.ok(largestDifference(logitsOf(result), oracle(model, later)) <= TOLERANCE.fp32)
    }
  })

  test('is appended to: the row that had no next event is computed again, and nothing else', async (t) => {
    const model = exportModel(t, { config: parseConfig(SMALL_RESEARCH) })
    const ranker = await openRanker(t, model, 'node')
    const request = randomRequest(model.config, createRandom(6), { events: 11, candidates: 5 })
    const events = request.histories.flat()
    await ranker.rank({ ...request, histories: [events.slice(0, 9)] }, {})
    const { kv } = await ranker.rank(request, {})
    // 8 rows are kept of nine events, whose last one had no next; 10 of eleven.
    assert.deepEqual([kv.state, kv.reusedTokens, kv.prefilledTokens], ['stale', 8, 2])
  })

  test('a user without events is one padding event: all scores are defined, and alike on all routes', async (t) => {
    const model = exportModel(t, { config: parseConfig(SMALL_RESEARCH) })
    const ranker = await openRanker(t, model, 'capi')
    const request = randomRequest(model.config, createRandom(7), { events: 0, candidates: 6 })
    const result = await ranker.rank(request, {})
    assert.ok(largestDifference(logitsOf(result), oracle(model, request)) <= TOLERANCE.fp32)
    assert.ok(logitsOf(result).every((logit) => Math.abs(logit) <= 1))
  })

  test('refuses actions, which it has none of', async (t) => {
    const model = exportModel(t, { config: parseConfig(SMALL_RESEARCH) })
    const ranker = await openRanker(t, model, 'capi')
    const request = randomRequest(model.config, createRandom(7), { events: 2, candidates: 2 })
    const events = request.histories.flat().map((event) => ({ ...event, actions: ['click'] }))
    await assert.rejects(ranker.rank({ ...request, histories: [events] }, {}), {
      code: 'INVALID_REQUEST',
      message: 'unknown action "click": expected none, the model has no actions',
    })
  })
})

describe('K/V of a dlrm-v3 model', () => {
  test('is a hit for the same history in the same time buckets, and for nothing else', async (t) => {
    const model = exportModel(t, { config: parseConfig(SMALL_DLRM) })
    const ranker = await openRanker(t, model, 'capi')
    const base = randomRequest(model.config, createRandom(8), { events: 6, candidates: 5 })
    // Half a minute into the first bucket of the newest event, a minute from the next.
    const time = 1_700_000_000
    const events = base.histories
      .flat()
      .map((event, i) => ({ ...event, time: time - 600 * i - 30 }))
    const request = { ...base, histories: [events], time }
    const stateOf = async (changed: RankInput) => {
      const result = await ranker.rank(changed, {})
      assert.ok(largestDifference(logitsOf(result), oracle(model, changed)) <= TOLERANCE.fp32)
      return result.kv.state
    }
    assert.equal(await stateOf(request), 'miss')
    assert.equal(await stateOf({ ...request, time: time + 20 }), 'hit')
    assert.equal(await stateOf({ ...request, time: time + 3600 }), 'miss')
    const grown = [...events, { item: '1', time: time - 10 }]
    assert.equal(await stateOf({ ...request, histories: [grown], time: time + 3600 }), 'miss')
    const other = { ...request, user: { ...request.user, features: { country: 1, device: 2 } } }
    assert.equal(await stateOf(other), 'miss')
  })
})
