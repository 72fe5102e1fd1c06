import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createRandom } from '../model/random.js'
import {
  choice,
  decide,
  type KvDecision,
  type KvPolicy,
  type KvQuestion,
  type Prices,
  paysToKeep,
} from './decide.js'

/** Random prices of the form that `createCosts` has; some terms are absent, some runs nearly free. */
function randomPrices(random: () => number): Prices & { perByte: number } {
  const factor = (scale: number) => (random() < 0.2 ? 0 : scale * 10 ** (3 * random() - 2))
  const [base, perToken, perPair] = [factor(1), factor(0.3), factor(0.01)]
  const perPast = Math.min(perToken, factor(0.1))
  const [scoreBase, perCandidate, rankBase] = [factor(1), factor(0.2), factor(1)]
  const [roundTrip, perByte] = [factor(2), factor(0.2)]
  const prices: Prices = {
    prefillMs: (n, past) => base + n * (perToken + perPair * (past + n)) + perPast * past,
    scoreMs: (m, n) => scoreBase + m * (perCandidate + 0.01 * n),
    rankMs: (m, n) => rankBase + prices.prefillMs(n, 0) + m * perCandidate,
    fetchMs: (bytes) => roundTrip + perByte * bytes,
  }
  return { ...prices, perByte }
}

const POLICIES: readonly KvPolicy[] = (['auto', 'always', 'never'] as const).flatMap((kv) =>
  [undefined, true, false].map((keepsKv) => ({ kv, keepsKv })),
)

/** Every question of up to six tokens and five candidates. */
function* questions(): Generator<KvQuestion> {
  for (let tokens = 0; tokens <= 6; tokens++) {
    for (let covered1 = 0; covered1 <= tokens; covered1++) {
      for (let covered = -1; covered <= tokens; covered++) {
        for (const candidates of [0, 1, 2, 5]) {
          for (const microBatchSize of [1, 2, 4]) {
            const tier2 = covered < 0 ? {} : { tier2: { covered, bytes: 3 * covered } }
            yield { tokens, covered1, ...tier2, candidates, microBatchSize }
          }
        }
      }
    }
  }
}

/** What is possible at all, in order of preference, with its cost now and with one more request. */
function waysOf(prices: Prices, { kv, keepsKv }: KvPolicy, question: KvQuestion) {
  const { tokens, covered1, tier2, candidates, microBatchSize } = question
  let scoreMs = 0
  const runs = Math.ceil(candidates / microBatchSize)
  for (let run = 0; run < runs; run++) scoreMs += prices.scoreMs(candidates / runs, tokens)
  const ways: { decision: KvDecision; ms: number; withNext: number }[] = []
  const add = (decision: KvDecision, kvMs: number) =>
    ways.push({ decision, ms: kvMs + scoreMs, withNext: kvMs + 2 * scoreMs })
  const isHit = tokens > 0 && covered1 === tokens
  const isFetch = tier2 !== undefined && tier2.covered > covered1
  if (isHit && kv !== 'never') add('hit', 0)
  if (isFetch && kv !== 'never') {
    const rest = tokens - tier2.covered
    const rests = rest === 0 ? 0 : prices.prefillMs(rest, tier2.covered)
    add('fetch', (prices.fetchMs(tier2.bytes) ?? Number.NaN) + rests)
  }
  if (covered1 > 0 && !isHit && kv !== 'never') {
    add('append', prices.prefillMs(tokens - covered1, covered1))
  }
  if (!isHit || kv === 'never') add('recompute', prices.prefillMs(tokens, 0))
  if (candidates <= microBatchSize && kv !== 'always' && keepsKv !== true) {
    const ms = prices.rankMs(candidates, tokens)
    ways.push({ decision: 'onePass', ms, withNext: 2 * 1.1 * ms })
  }
  return ways
}

describe('decide', () => {
  test('takes the way that is cheapest with one more request, for all small questions', () => {
    const seen = new Set<string>()
    for (let seed = 1; seed <= 40; seed++) {
      const prices = randomPrices(createRandom(seed))
      for (const question of questions()) {
        const ways = waysOf(prices, { kv: 'auto' }, question)
        const got = decide(prices, { kv: 'auto' }, question)
        const what = `seed ${seed}: ${JSON.stringify(question)}`
        const taken = ways.find(({ decision }) => decision === got.decision)
        assert.ok(taken, `${what}: ${got.decision} is not possible`)
        assert.ok(Math.abs(got.predictedMs - taken.ms) <= 1e-9 * taken.ms, what)
        const least = Math.min(...ways.map(({ withNext }) => withNext))
        // A hit is taken without asking what else there is.
        if (got.decision !== 'hit') assert.ok(taken.withNext <= least * (1 + 1e-9), what)
        assert.equal(got.decision === 'hit', ways[0]?.decision === 'hit', what)
        seen.add(got.decision)
      }
    }
    assert.equal(seen.size, 5, [...seen].join())
  })

  test('uses whatever K/V there is where it always must, and none where it never may', () => {
    const prices = randomPrices(createRandom(3))
    for (const keepsKv of [undefined, true, false]) {
      for (const question of questions()) {
        const always = waysOf(prices, { kv: 'always', keepsKv }, question)
        const got = decide(prices, { kv: 'always', keepsKv }, question)
        assert.equal(got.decision, always[0]?.decision, JSON.stringify(question))
        const never = decide(prices, { kv: 'never', keepsKv }, question)
        const fits = question.candidates <= question.microBatchSize
        assert.equal(never.decision, fits ? 'onePass' : 'recompute')
      }
    }
  })

  test('follows a measured answer: one pass for whatever fits and is no hit, or for nothing', () => {
    for (let seed = 1; seed <= 5; seed++) {
      const prices = randomPrices(createRandom(seed))
      for (const question of questions()) {
        const { candidates, microBatchSize, tokens, covered1 } = question
        const without = decide(prices, { kv: 'auto', keepsKv: false }, question).decision
        const isHit = covered1 === tokens && tokens > 0
        if (isHit) assert.equal(without, 'hit')
        else assert.equal(without === 'onePass', candidates <= microBatchSize)
        assert.notEqual(decide(prices, { kv: 'auto', keepsKv: true }, question).decision, 'onePass')
      }
    }
  })

  test('says of every decision what it costs, as when it took it itself', () => {
    const prices = randomPrices(createRandom(9))
    for (const policy of POLICIES) {
      for (const question of questions()) {
        const taken = decide(prices, policy, question)
        const again = choice(prices, taken.decision, question)
        assert.equal(again.decision, taken.decision)
        assert.ok(Math.abs(again.predictedMs - taken.predictedMs) <= 1e-9 * taken.predictedMs)
      }
    }
  })

  test('fetches no less when tier 2 holds more, sends fewer bytes or is faster', () => {
    for (let seed = 1; seed <= 20; seed++) {
      const prices = randomPrices(createRandom(seed))
      const isFetched = (question: KvQuestion, faster = 1) => {
        const fetchMs = (bytes: number) => (prices.fetchMs(bytes) ?? 0) / faster
        return decide({ ...prices, fetchMs }, { kv: 'auto' }, question).decision === 'fetch'
      }
      for (const question of questions()) {
        const { tier2, tokens } = question
        if (tier2 === undefined || !isFetched(question)) continue
        const what = `seed ${seed}: ${JSON.stringify(question)}`
        for (let covered = tier2.covered + 1; covered <= tokens; covered++) {
          assert.ok(isFetched({ ...question, tier2: { ...tier2, covered } }), `${what}, ${covered}`)
        }
        for (let bytes = 0; bytes < tier2.bytes; bytes++) {
          assert.ok(
            isFetched({ ...question, tier2: { ...tier2, bytes } }),
            `${what}, ${bytes} bytes`,
          )
        }
        assert.ok(isFetched(question, 2), what)
      }
    }
  })

  test('appends no less when tier 1 holds more, and then costs less', () => {
    for (let seed = 1; seed <= 20; seed++) {
      const prices = randomPrices(createRandom(seed))
      for (const question of questions()) {
        const got = decide(prices, { kv: 'auto' }, question)
        const { covered1, tokens } = question
        if (got.decision === 'hit' || covered1 === tokens) continue
        const more = decide(prices, { kv: 'auto' }, { ...question, covered1: covered1 + 1 })
        const what = `seed ${seed}: ${JSON.stringify(question)}`
        if (got.decision === 'append') assert.match(more.decision, /^(append|hit)$/, what)
        assert.notEqual(more.decision, 'recompute', `${what}: an append is never dearer`)
      }
    }
  })
})

describe('paysToKeep', () => {
  test('is true exactly where two requests cost less with K/V than without', () => {
    for (let prefillMs = 0; prefillMs <= 6; prefillMs++) {
      for (let scoreMs = 0; scoreMs <= 6; scoreMs++) {
        for (let rankMs = 0; rankMs <= 6; rankMs++) {
          const withKv = prefillMs + scoreMs + scoreMs
          const without = rankMs + rankMs
          assert.equal(paysToKeep({ prefillMs, scoreMs, rankMs }), withKv <= without)
        }
      }
    }
  })

  test('keeps K/V where one pass costs what a prefill and a score do', () => {
    assert.ok(paysToKeep({ prefillMs: 260, scoreMs: 36, rankMs: 296 }))
  })
})
