// The promise of exactness: scores do not depend on b, on the cache state, on the other candidates, on
// their order, or on other users. Appending equals rebuilding.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { planMicroBatches } from '../falcon/plan.js'
import { createRanker } from '../falcon/rank.js'
import { largestDifference } from '../falcon/verify.js'
import type { Engine } from '../model/engine/engine.js'
import type { Precision } from '../model/manifest.js'
import { createRandom } from '../model/random.js'
import type { RankInput } from '../model/request.js'
import { sliceTokens } from '../model/tokens.js'
import { TOLERANCE } from '../model/vectors.js'
import { KINDS, openEngine } from './engines.js'
import { exportModel, pickRows, randomRequest, randomTokens, tokensOf } from './fixtures.js'

/**
 * Largest logit difference between two ways to the same scores. Not zero: a matrix product of another
 * height takes another kernel, which adds in another order. With these logits (around 0.5) the
 * largest seen were 2.4e-7 in fp32 and 4.1e-4 in fp16, one rounding step of each.
 */
const SAME: Record<Precision, number> = { fp32: 1e-6, fp16: 2e-3 }

const SEED = 5

const PRECISIONS = ['fp32', 'fp16'] as const

for (const { kind, precision } of KINDS.flatMap((kind) =>
  PRECISIONS.map((precision) => ({ kind, precision })),
)) {
  describe(`invariants of engine ${kind} in ${precision}`, () => {
    const model = exportModel({ after }, { precision })
    const { vocabulary, reference, config } = model
    const slots = vocabulary.layout.slots
    const tasks = config.tasks.length
    const same = SAME[precision]
    let engine: Engine
    before(async () => {
      engine = await openEngine(kind, model)
    })
    after(() => engine.close())

    const assertClose = (
      got: ArrayLike<number>,
      expected: ArrayLike<number>,
      what: string,
      tolerance = same,
    ) => {
      const difference = largestDifference(got, expected)
      assert.ok(difference <= tolerance, `seed ${SEED}, ${what}: ${difference} > ${tolerance}`)
    }

    test('every route agrees with the float64 oracle', async () => {
      const random = createRandom(SEED)
      for (const events of [0, 1, 2, 5, 16, 32]) {
        const { history, candidates, queryTime } = randomTokens(model, random, {
          events,
          candidates: 9,
          series: events % 3,
        })
        const expected = reference(history, candidates, queryTime).logits
        const handle = await engine.prefill(history)
        const scored = await engine.score(handle, candidates, queryTime)
        assertClose(scored, expected, `score, ${events} events`, TOLERANCE[precision])
        const [ranked = []] = await engine.rank([{ history, candidates, queryTime }])
        assertClose(ranked, expected, `rank, ${events} events`, TOLERANCE[precision])
        engine.release(handle)
      }
    })

    test('scores do not depend on b, for all b in 1..m', async () => {
      const m = 24
      const { history, candidates, queryTime } = randomTokens(model, createRandom(SEED), {
        events: 20,
        candidates: m,
      })
      const handle = await engine.prefill(history)
      const whole = await engine.score(handle, candidates, queryTime)
      for (let b = 1; b <= m; b++) {
        const logits: number[] = []
        for (const { start, end } of planMicroBatches(m, b)) {
          const batch = candidates.subarray(start * slots, end * slots)
          logits.push(...(await engine.score(handle, batch, queryTime)))
        }
        assertClose(logits, whole, `b=${b}`)
      }
    })

    test('permuting candidates permutes scores; removing, adding and repeating changes no other', async () => {
      const random = createRandom(SEED)
      const m = 16
      const { history, candidates, queryTime } = randomTokens(model, random, {
        events: 18,
        candidates: m,
      })
      const handle = await engine.prefill(history)
      const whole = await engine.score(handle, candidates, queryTime)
      const expectedOf = (indices: readonly number[]) =>
        indices.flatMap((i) => [...whole.subarray(i * tasks, (i + 1) * tasks)])
      for (let round = 0; round < 40; round++) {
        // Repeats, subsets and orders of every size up to twice m.
        const count = 1 + Math.floor(random() * 2 * m)
        const indices = Array.from({ length: count }, () => Math.floor(random() * m))
        const rows = pickRows(candidates, slots, indices)
        const scored = await engine.score(handle, rows, queryTime)
        assertClose(scored, expectedOf(indices), `candidates ${indices}`)
        const [ranked = []] = await engine.rank([{ history, candidates: rows, queryTime }])
        assertClose(ranked, expectedOf(indices), `candidates ${indices} in one pass`)
      }
      const reversed = [...Array(m).keys()].reverse()
      const scored = await engine.score(handle, pickRows(candidates, slots, reversed), queryTime)
      assertClose(scored, expectedOf(reversed), 'reversed')
    })

    test('appending equals rebuilding, in one step at every split and token by token', async () => {
      const { history, candidates, queryTime } = randomTokens(model, createRandom(SEED), {
        events: 32,
        candidates: 6,
      })
      assert.equal(history.length, 66, 'past the 64 rows that a block holds at first')
      const rebuilt = await engine.prefill(history)
      const expected = await engine.score(rebuilt, candidates, queryTime)
      for (let split = 1; split < history.length; split++) {
        const past = await engine.prefill(sliceTokens(history, 0, split))
        const rest = sliceTokens(history, split, history.length)
        const handle = await engine.prefill(rest, { handle: past, tokens: split })
        assertClose(await engine.score(handle, candidates, queryTime), expected, `split ${split}`)
        engine.release(past)
        engine.release(handle)
      }
      let handle = await engine.prefill(sliceTokens(history, 0, 1))
      for (let tokens = 1; tokens < history.length; tokens++) {
        const next = await engine.prefill(sliceTokens(history, tokens, tokens + 1), {
          handle,
          tokens,
        })
        engine.release(handle)
        handle = next
      }
      assertClose(await engine.score(handle, candidates, queryTime), expected, 'token by token')
    })

    test('scores do not depend on batch mates, nor on the padding they bring', async () => {
      const random = createRandom(SEED)
      const users = [3, 0, 32, 1, 17].map((events, i) =>
        randomTokens(model, random, { events, candidates: [4, 9, 1, 16, 2][i] ?? 1 }),
      )
      const alone: Float32Array[] = []
      for (const user of users) alone.push(...(await engine.rank([user])))
      for (let subset = 1; subset < 2 ** users.length; subset++) {
        const chosen = users.flatMap((user, u) => ((subset >> u) & 1 ? [{ user, u }] : []))
        const batched = await engine.rank(chosen.map(({ user }) => user))
        assert.equal(batched.length, chosen.length)
        chosen.forEach(({ u }, i) => {
          assertClose(batched[i] ?? [], alone[u] ?? [], `user ${u} in subset ${subset}`)
        })
      }
    })

    test('scores do not depend on the cache state: cold, hit, appended, shortened, edited, evicted', async () => {
      const random = createRandom(SEED)
      const full = randomRequest(config, random, { events: 12, candidates: 7 })
      const withEvents = (history: RankInput['histories'][number]): RankInput => ({
        ...full,
        histories: [history],
      })
      const [events = []] = full.histories
      const edited = events.map((event, i) => (i === 4 ? { ...event, item: '1' } : event))
      // The order is the point: every request meets what those before it left behind.
      const requests = [
        full,
        full,
        ...events.map((_, e) => withEvents(events.slice(0, e))),
        full,
        withEvents(events.slice(0, 5)),
        withEvents(edited),
        full,
        withEvents(events.slice(3)),
        withEvents([]),
        full,
      ]
      const cold = new Map<RankInput, number[]>()
      const options = { engine, bundle: model.bundle, microBatchSize: 3 }
      const logitsOf = async (
        rank: ReturnType<typeof createRanker>['rank'],
        request: RankInput,
      ) => {
        const { items } = await rank(request, {})
        return items.toSorted((a, b) => a.index - b.index).flatMap(({ logits }) => logits)
      }
      for (const request of requests) {
        const { rank } = createRanker({ ...options, maxKvBytes: 0 })
        cold.set(request, await logitsOf(rank, request))
      }
      // No cache; room for about one entry, so that two users evict each other; room for all.
      for (const maxKvBytes of [0, 20_000, 1e9]) {
        const { rank } = createRanker({ ...options, maxKvBytes })
        for (const [i, request] of requests.entries()) {
          const other = { ...request, user: { ...request.user, id: 'u2' } }
          const expected = cold.get(request) ?? []
          const what = `request ${i}, ${maxKvBytes} bytes of cache`
          assertClose(await logitsOf(rank, request), expected, what)
          if (i % 2) assertClose(await logitsOf(rank, other), expected, `${what}, another user`)
        }
      }
    })

    test('concurrent requests of one user with different histories keep their own scores', async () => {
      const random = createRandom(SEED)
      const full = randomRequest(config, random, { events: 20, candidates: 5 })
      const [events = []] = full.histories
      const requests = Array.from({ length: 20 }, (_, i) => ({
        ...full,
        histories: [i % 3 === 0 ? events.slice(i) : events.slice(0, 1 + i)],
      }))
      const ranker = createRanker({
        engine,
        bundle: model.bundle,
        microBatchSize: 2,
        maxKvBytes: 30_000,
      })
      const results = await Promise.all(
        [...requests, ...requests].map((request) => ranker.rank(request, {})),
      )
      results.forEach(({ items }, i) => {
        const request = requests[i % requests.length]
        assert.ok(request)
        const { history, candidates, queryTime } = tokensOf(request, vocabulary)
        const got = items.toSorted((a, b) => a.index - b.index).flatMap(({ logits }) => logits)
        const expected = reference(history, candidates, queryTime).logits
        assertClose(got, expected, `request ${i}`, TOLERANCE[precision])
      })
    })
  })
}
