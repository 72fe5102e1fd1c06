import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createRandom } from '../model/random.js'
import { type Calibration, createCosts, type FetchSpeed } from './costs.js'

const MAX_TOKENS = 2048
const B = 256
/** A tenth of a gigabyte per second, half a millisecond away, 12 KiB per token. */
const REDIS: FetchSpeed = { roundTripMs: 0.5, bytesPerSec: 1e8, bytesPerToken: 12_288 }

/** What a machine takes that follows the model's form to the letter. */
const TRUTH = {
  prefill: (n: number, past: number) => 1 + n * (0.05 + 3e-5 * (past + n)) + 0.004 * past,
  score: (m: number, n: number) => 0.8 + 0.002 * n + m * (0.05 + 4e-5 * n),
  // A launch less, and a tenth more.
  rank: (m: number, n: number) => 1.1 * (TRUTH.prefill(n, 0) + TRUTH.score(m, n) - 0.8),
}

function calibrationOf(
  { prefill, score, rank }: typeof TRUTH,
  noise: () => number = () => 1,
): Calibration {
  const quarter = MAX_TOKENS / 4
  const lengths: [number, number][] = [
    [MAX_TOKENS, 0],
    [quarter, 0],
    [2, 0],
    [2, MAX_TOKENS - 2],
    [2, quarter - 2],
    [quarter, MAX_TOKENS - quarter],
  ]
  const runs: [number, number][] = [
    [B, MAX_TOKENS],
    [1, MAX_TOKENS],
    [B, quarter],
    [1, quarter],
  ]
  return {
    prefill: lengths.map(([newTokens, pastTokens]) => ({
      newTokens,
      pastTokens,
      ms: prefill(newTokens, pastTokens) * noise(),
    })),
    score: runs.map(([candidates, tokens]) => ({
      candidates,
      tokens,
      ms: score(candidates, tokens) * noise(),
    })),
    rank: [quarter, 2].map((tokens) => ({ candidates: B, tokens, ms: rank(B, tokens) * noise() })),
  }
}

const open = (policy = {}) =>
  createCosts(calibrationOf(TRUTH), { maxTokens: MAX_TOKENS, kv: 'auto', ...policy })

const assertNear = (got: number | undefined, expected: number, share: number, what = '') =>
  assert.ok(
    got !== undefined && Math.abs(got / expected - 1) <= share,
    `${what}: ${got}, expected ${expected}`,
  )

describe('createCosts', () => {
  test('predicts lengths that were not measured, of every kind of run', () => {
    const { prefillMs, scoreMs, rankMs } = open()
    for (let n = 1; n <= MAX_TOKENS; n *= 2) {
      for (const past of [0, 64, MAX_TOKENS - n]) {
        assertNear(prefillMs(n, past), TRUTH.prefill(n, past), 1e-6, `${n} behind ${past}`)
      }
      for (const m of [1, 10, B]) {
        assertNear(scoreMs(m, n), TRUTH.score(m, n), 1e-6, `${m} on ${n}`)
        assertNear(rankMs(m, n), TRUTH.rank(m, n), 1e-6, `${m} and ${n}`)
      }
    }
  })

  test('is finite, falls with no work and prefills no part dearer than all, whatever was measured', () => {
    for (let seed = 1; seed <= 200; seed++) {
      const random = createRandom(seed)
      // Every measurement up to ten times off.
      const costs = createCosts(
        calibrationOf(TRUTH, () => 10 ** (2 * random() - 1)),
        { maxTokens: MAX_TOKENS, kv: 'auto' },
      )
      const { prefillMs, scoreMs, rankMs } = costs
      for (const n of [1, 2, 3, 100, 1000, 2047]) {
        const what = `seed ${seed}, ${n} tokens`
        assert.ok(prefillMs(n, 0) >= 0 && Number.isFinite(prefillMs(n, 0)), what)
        assert.ok(prefillMs(n + 1, 0) >= prefillMs(n, 0), what)
        assert.ok(prefillMs(n, 1) >= prefillMs(n, 0), what)
        assert.ok(scoreMs(5, n + 1) >= scoreMs(5, n) && scoreMs(6, n) >= scoreMs(5, n), what)
        assert.ok(rankMs(5, n + 1) >= rankMs(5, n) && rankMs(6, n) >= rankMs(5, n), what)
        for (const past of [1, n >> 1, n - 1]) {
          if (past < 1 || past >= n) continue
          assert.ok(prefillMs(n - past, past) <= prefillMs(n, 0) * (1 + 1e-12), `${what}, ${past}`)
        }
      }
    }
  })

  test('knows no fetch before it is told of a tier 2', () => {
    const costs = open()
    costs.observeFetch(1000, 1)
    assert.equal(costs.fetchMs(1e6), undefined)
    assert.equal(costs.breakEvenTokens(), undefined)
    assert.deepEqual(Object.keys(costs.stats()), [
      'breakEvenTokens',
      'fetchBytesPerSec',
      'prefillTokensPerSec',
    ])
    assert.equal(costs.stats().fetchBytesPerSec, undefined)
    const expected = (1000 * MAX_TOKENS) / TRUTH.prefill(MAX_TOKENS, 0)
    assertNear(costs.stats().prefillTokensPerSec, expected, 1e-6)
    costs.setFetch(REDIS)
    assertNear(costs.fetchMs(1e6), 10.5, 1e-9)
    assert.equal(costs.stats().fetchBytesPerSec, 1e8)
  })

  test('follows a machine that became slower or faster, each kind of run by itself', () => {
    for (const factor of [0.4, 3]) {
      const costs = open()
      costs.setFetch(REDIS)
      for (let i = 0; i < 150; i++) {
        costs.observePrefill(2, 500, factor * TRUTH.prefill(2, 500))
        costs.observeScore(B, 502, 1.5 * TRUTH.score(B, 502))
        costs.observeFetch(1e5, 2 * 1.5)
      }
      // Learnt from appends; a prefill from nothing was not seen.
      const { prefillMs, scoreMs, rankMs } = costs
      assertNear(prefillMs(2048, 0), factor * TRUTH.prefill(2048, 0), 0.05, `${factor}`)
      assertNear(scoreMs(9, 30), 1.5 * TRUTH.score(9, 30), 0.05)
      assertNear(costs.fetchMs(1e6), 2 * 10.5, 0.05)
      assertNear(costs.stats().fetchBytesPerSec, 1e8 / 2, 0.05)
      // Nor was one pass: it is what its parts are.
      const parts = prefillMs(2048, 0) + scoreMs(9, 2048)
      assertNear(rankMs(9, 2048), 1.1 * parts, 0.02, `${factor}`)
      for (let i = 0; i < 150; i++) costs.observeRank(9, 2048, 1.3 * parts)
      assertNear(rankMs(9, 2048), 1.3 * parts, 0.05, `${factor}`)
    }
  })

  test('is not talked out of keeping K/V by a start-up on a busy machine', () => {
    for (let seed = 1; seed <= 300; seed++) {
      const random = createRandom(seed)
      // Any run of the calibration may have stood still for a while.
      const calibration = calibrationOf(TRUTH, () => (random() < 0.3 ? 1 + 4 * random() : 1))
      const costs = createCosts(calibration, { maxTokens: MAX_TOKENS, kv: 'auto' })
      for (const tokens of [256, 1024, MAX_TOKENS]) {
        for (const candidates of [1, 16, B]) {
          const question = { tokens, covered1: 0, candidates, microBatchSize: B }
          const what = `seed ${seed}, ${tokens} tokens, ${candidates} candidates`
          assert.equal(costs.decide(question).decision, 'recompute', what)
        }
      }
    }
  })

  test('takes one stalled run for an eightfold one, and forgets it', () => {
    const costs = open()
    const usual = costs.prefillMs(2048, 0)
    costs.observePrefill(2048, 0, 1e9)
    const after = costs.prefillMs(2048, 0) / usual
    assert.ok(after > 1 && after < 1 + 8 / 26, String(after))
    for (let i = 0; i < 120; i++) costs.observePrefill(2048, 0, usual)
    assertNear(costs.prefillMs(2048, 0), usual, 0.01)
    for (let i = 0; i < 1000; i++) costs.observePrefill(2048, 0, 0)
    assertNear(costs.prefillMs(2048, 0), usual / 8, 0.01, 'never free')
  })

  test('breaks even where a plain search says, for random machines', () => {
    const seen = { never: 0, always: 0, between: 0 }
    for (let seed = 1; seed <= 400; seed++) {
      const random = createRandom(seed)
      const factor = (scale: number) => (random() < 0.15 ? 0 : scale * 10 ** (2 * random() - 1))
      const [base, perToken, perPair] = [factor(1), factor(0.02), factor(1e-4)]
      const prefill = (n: number, past: number) => base + n * (perToken + perPair * (past + n))
      const maxTokens = 300
      // Not quite 0: what takes no time cannot be measured.
      const calibration = calibrationOf({ ...TRUTH, prefill: (n, p) => 1e-9 + prefill(n, p) })
      const costs = createCosts(calibration, { maxTokens, kv: 'auto' })
      const bytesPerToken = 100 + 900 * random()
      const bytesPerSec = 1e6 * 10 ** (2 * random())
      costs.setFetch({ roundTripMs: factor(1), bytesPerSec, bytesPerToken })
      let expected: number | undefined
      for (let n = maxTokens; n >= 1; n--) {
        if (!((costs.fetchMs(n * bytesPerToken) ?? 0) < costs.prefillMs(n, 0))) break
        expected = n
      }
      assert.equal(costs.breakEvenTokens(), expected, `seed ${seed}`)
      assert.equal(costs.stats().breakEvenTokens, expected)
      seen[expected === undefined ? 'never' : expected === 1 ? 'always' : 'between']++
    }
    assert.ok(Math.min(seen.never, seen.always, seen.between) > 20, JSON.stringify(seen))
  })

  test('fetches from earlier on when the engine is under load, from later on when the network is', () => {
    const costs = open()
    costs.setFetch({ ...REDIS, bytesPerToken: 4000, roundTripMs: 3 })
    const before = costs.breakEvenTokens() ?? Number.NaN
    for (let i = 0; i < 50; i++) costs.observePrefill(B, 100, 3 * TRUTH.prefill(B, 100))
    const loaded = costs.breakEvenTokens() ?? Number.NaN
    for (let i = 0; i < 50; i++) costs.observeFetch(4e5, 2 * 7)
    const slow = costs.breakEvenTokens() ?? Number.NaN
    assert.ok(loaded < before && slow > loaded, `${before}, ${loaded}, ${slow}`)
  })

  test('decides by its own prices, and names the price of any decision', () => {
    const costs = open()
    const question = { tokens: 1000, covered1: 0, candidates: 100, microBatchSize: B }
    assert.equal(costs.decide(question).decision, 'recompute')
    assert.equal(costs.decide({ ...question, covered1: 998 }).decision, 'append')
    costs.setFetch({ ...REDIS, bytesPerSec: 1e9 })
    const tier2 = { covered: 1000, bytes: 1000 * REDIS.bytesPerToken }
    const fetched = costs.decide({ ...question, tier2 })
    assert.equal(fetched.decision, 'fetch')
    assertNear(fetched.predictedMs, 0.5 + 12.288 + TRUTH.score(100, 1000), 1e-6)
    assert.deepEqual(costs.priceOf('fetch', { ...question, tier2 }), fetched)
    assert.equal(costs.decide({ ...question, tier2, covered1: 998 }).decision, 'append')
    const onePass = costs.priceOf('onePass', question)
    assertNear(onePass.predictedMs, TRUTH.rank(100, 1000), 1e-6)
    assert.equal(open({ keepsKv: false }).decide(question).decision, 'onePass')
    assert.equal(open({ kv: 'never' }).decide(question).decision, 'onePass')
  })
})
