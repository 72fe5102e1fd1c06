// What every engine must do, whatever runs behind it: node/pool.test.ts and its successors call this.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { largestDifference } from '../falcon/verify.js'
import type { Engine, KvHandle } from '../model/engine/engine.js'
import { createRandom } from '../model/random.js'
import { sliceTokens } from '../model/tokens.js'
import {
  type CreateEngine,
  engineKvSuite,
  kvBytes,
  openerOf,
  TOLERANCE,
} from './engine-kv-suite.js'
import { exportModel, randomTokens, smallConfig } from './fixtures.js'

export function engineSuite(name: string, create: CreateEngine): void {
  engineKvSuite(name, create)

  const open = openerOf(create)

  describe(`engine ${name}`, () => {
    const model = exportModel({ after })
    let engine: Engine
    before(async () => {
      engine = await create(model.bundle)
    })
    after(() => engine.close())

    test('answers 200 interleaved jobs of many histories as the oracle does', async () => {
      const seed = 11
      const random = createRandom(seed)
      const cases = Array.from({ length: 40 }, (_, i) => {
        const tokens = randomTokens(model, random, { events: i % 31, candidates: 1 + (i % 7) })
        const { history, candidates, queryTime } = tokens
        return { ...tokens, expected: model.reference(history, candidates, queryTime).logits }
      })
      const jobs = cases.map(async ({ history, candidates, queryTime, expected }, i) => {
        const whole = await engine.prefill(history)
        const [scored, ranked, appended] = await Promise.all([
          engine.score(whole, candidates, queryTime),
          engine.rank([{ history, candidates, queryTime }]),
          (async () => {
            const split = Math.min(i, history.length)
            const rest = sliceTokens(history, split, history.length)
            const handle = await engine.prefill(rest, { handle: whole, tokens: split })
            const logits = await engine.score(handle, candidates, queryTime)
            engine.release(handle)
            return logits
          })(),
        ])
        engine.release(whole)
        for (const got of [scored, ranked[0] ?? [], appended]) {
          assert.ok(largestDifference(got, expected) <= TOLERANCE, `seed ${seed}, case ${i}`)
        }
      })
      await Promise.all(jobs)
      assert.equal(engine.stats().pendingJobs, 0)
    })

    test('refuses a released handle, and one of another engine', async (t) => {
      const other = await open(t, model)
      const { history, candidates, queryTime } = randomTokens(model, createRandom(1), {
        events: 3,
        candidates: 2,
      })
      const handle = await engine.prefill(history)
      await assert.rejects(async () => other.score(handle, candidates, queryTime), {
        code: 'INTERNAL',
        message: /handle of another engine/,
      })
      engine.release(handle)
      await assert.rejects(engine.score(handle, candidates, queryTime), {
        code: 'INTERNAL',
        message: /released/,
      })
      await assert.rejects(engine.exportKv(handle), { code: 'INTERNAL' })
      await assert.rejects(engine.prefill(history, { handle, tokens: 1 }), { code: 'INTERNAL' })
    })

    test('refuses more past tokens than the handle has', async () => {
      const { history } = randomTokens(model, createRandom(2), { events: 3, candidates: 1 })
      const handle = await engine.prefill(history)
      await assert.rejects(engine.prefill(history, { handle, tokens: history.length + 1 }), {
        code: 'INTERNAL',
        message: /past has 8 tokens, asked for 9/,
      })
    })

    test('never changes a handle by what is appended to it, at every split', async () => {
      const random = createRandom(3)
      const { history } = randomTokens(model, random, { events: 20, candidates: 1 })
      const other = randomTokens(model, random, { events: 20, candidates: 1 }).history
      const expected = kvBytes(await engine.exportKv(await engine.prefill(history)))
      for (let split = 0; split <= history.length; split++) {
        const past = await engine.prefill(sliceTokens(history, 0, split))
        const before = kvBytes(await engine.exportKv(past))
        const rest = sliceTokens(history, split, history.length)
        // Two suffixes on one past, then the first again: only one of them may grow in place.
        const first = await engine.prefill(rest, { handle: past, tokens: split })
        const second = await engine.prefill(sliceTokens(other, split, other.length), {
          handle: past,
          tokens: split,
        })
        const again = await engine.prefill(rest, { handle: past, tokens: split })
        assert.deepEqual(kvBytes(await engine.exportKv(past)), before, `split ${split}`)
        for (const handle of [first, again]) {
          const got = kvBytes(await engine.exportKv(handle))
          assert.ok(largestDifference(got, expected) <= 1e-5, `split ${split}`)
        }
        if (split < history.length) {
          assert.notDeepEqual(kvBytes(await engine.exportKv(second)), expected, `split ${split}`)
        }
        for (const handle of [past, first, second, again]) engine.release(handle)
      }
    })

    test('views the first tokens of a handle when nothing is appended', async () => {
      const { history, candidates, queryTime } = randomTokens(model, createRandom(4), {
        events: 9,
        candidates: 3,
      })
      const whole = await engine.prefill(history)
      for (let tokens = 0; tokens <= history.length; tokens++) {
        const view = await engine.prefill(sliceTokens(history, 0, 0), { handle: whole, tokens })
        assert.equal(view.tokens, tokens)
        const got = await engine.score(view, candidates, queryTime)
        const expected = model.reference(sliceTokens(history, 0, tokens), candidates, queryTime)
        assert.ok(largestDifference(got, expected.logits) <= TOLERANCE, `${tokens} tokens`)
        engine.release(view)
      }
      // The whole outlives its views.
      await engine.score(whole, candidates, queryTime)
    })

    test('scores no history, no candidates, and no users', async (t) => {
      const bare = exportModel(t, { config: smallConfig({ context: [] }) })
      const bareEngine = await open(t, bare)
      const { history, candidates, queryTime } = randomTokens(bare, createRandom(7), {
        events: 0,
        candidates: 3,
      })
      assert.equal(history.length, 0)
      const handle = await bareEngine.prefill(history)
      const expected = bare.reference(history, candidates, queryTime).logits
      const scored = await bareEngine.score(handle, candidates, queryTime)
      assert.ok(largestDifference(scored, expected) <= TOLERANCE)
      assert.equal((await bareEngine.score(handle, new Int32Array(0), queryTime)).length, 0)
      const user = { history, candidates, queryTime }
      const [ranked = []] = await bareEngine.rank([user])
      assert.ok(largestDifference(ranked, expected) <= TOLERANCE)
      const [none] = await bareEngine.rank([{ ...user, candidates: new Int32Array(0) }])
      assert.equal(none?.length, 0)
      assert.deepEqual(await bareEngine.rank([]), [])
    })

    test('prefills a history of several chunks as the oracle does, and appends across their edges', async (t) => {
      const config = smallConfig({ maxTokens: 1300, layers: 2, heads: 1, dqk: 4, dModel: 8 })
      const long = exportModel(t, { config })
      const longEngine = await open(t, long)
      const { history, candidates, queryTime } = randomTokens(long, createRandom(8), {
        events: 520,
        candidates: 2,
      })
      assert.ok(history.length > 1024, 'more than two chunks of 512')
      const expected = long.reference(history, candidates, queryTime).logits
      for (const split of [0, 1, 511, 512, 513, 1030, history.length]) {
        const past = await longEngine.prefill(sliceTokens(history, 0, split))
        const rest = sliceTokens(history, split, history.length)
        const handle = await longEngine.prefill(rest, { handle: past, tokens: split })
        const got = await longEngine.score(handle, candidates, queryTime)
        assert.ok(largestDifference(got, expected) <= TOLERANCE, `split ${split}`)
        longEngine.release(past)
        longEngine.release(handle)
      }
    })

    test('answers what runs when close() is called, and refuses what comes after', async () => {
      const closing = await create(model.bundle)
      const { history, candidates, queryTime } = randomTokens(model, createRandom(9), {
        events: 30,
        candidates: 5,
      })
      const handle: KvHandle = await closing.prefill(history)
      const running = Array.from({ length: 30 }, () => closing.score(handle, candidates, queryTime))
      const closed = closing.close()
      const [first, ...others] = await Promise.all(running)
      for (const logits of others) assert.deepEqual(logits, first)
      await closed
      assert.equal(closing.isAlive(handle), false)
      await assert.rejects(closing.score(handle, candidates, queryTime), { code: 'WORKER_CRASHED' })
      await assert.rejects(async () => closing.prefill(history), { code: 'WORKER_CRASHED' })
      closing.release(handle)
      await closing.close()
    })

    test('may be closed twice at once', async () => {
      const closing = await create(model.bundle)
      await Promise.all([closing.close(), closing.close()])
      assert.equal(closing.stats().workers, 0)
    })

    test('warms up without keeping anything', async () => {
      await engine.warmUp({ historyTokens: [66, 2, 0], candidates: [8, 1] })
      assert.equal(engine.stats().pendingJobs, 0)
    })
  })
}
