// A request that ends early lets go of everything: its place in the engine's queue, its K/V, its lease.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import type { Engine } from '../model/engine/engine.js'
import { createRandom } from '../model/random.js'
import { countHandles, idle, KINDS, occupy, openEngine } from '../test/engines.js'
import { exportModel, randomRequest } from '../test/fixtures.js'
import { createRanker, type RankerOptions } from './rank.js'

const model = exportModel({ after })

const request = (events: number, candidates: number, user = 'u') =>
  randomRequest(model.config, createRandom(3), { user, events, candidates })

for (const kind of KINDS) {
  describe(`a request to engine ${kind} that ends early`, () => {
    let engine: Engine
    before(async () => {
      engine = await openEngine(kind, model)
    })
    after(() => engine.close())

    /** A ranker on the real engine that outlives it, and the handles it holds. */
    const open = (changes: Partial<RankerOptions> = {}) => {
      const counted = countHandles({ ...engine, close: async () => {} })
      const options = { bundle: model.bundle, microBatchSize: 2, maxKvBytes: 1e9, ...changes }
      return { ...createRanker({ engine: counted, ...options }), live: counted.live }
    }

    for (const [route, events, candidates] of [
      ['cached', 9, 7],
      ['one pass', 0, 2],
      ['without events', 0, 7],
    ] as const) {
      test(`leaves the queue at once when the client leaves (${route})`, async () => {
        const { rank, close, live } = open()
        const load = await occupy(engine, model)
        const client = new AbortController()
        const answer = rank(request(events, candidates), { partial: true, signal: client.signal })
        client.abort()
        await assert.rejects(answer, { code: 'CANCELLED', message: /^the client left after / })
        assert.equal(load.isBusy(), true)
        await load.giveUp()
        await close()
        assert.equal(live(), 0)
      })

      test(`leaves the queue at its deadline: an error, or an answer of nothing (${route})`, async (t) => {
        t.mock.timers.enable({ apis: ['setTimeout'] })
        for (const partial of [false, true]) {
          let clock = 0
          const { rank, close, live } = open({ now: () => clock })
          const load = await occupy(engine, model)
          const answer = rank(request(events, candidates), { deadlineMs: 50, partial })
          clock = 51
          t.mock.timers.tick(51)
          if (partial) {
            const { items, scored, kv } = await answer
            assert.deepEqual([items, scored, kv.state], [[], 0, 'none'])
          } else {
            await assert.rejects(answer, { code: 'DEADLINE_EXCEEDED', message: /after 51.0 ms/ })
          }
          assert.equal(load.isBusy(), true)
          await load.giveUp()
          await close()
          assert.equal(live(), 0)
        }
      })
    }

    test('answers the micro-batches before its deadline, whichever one the deadline hits', async (t) => {
      const input = request(9, 8)
      const whole = open()
      const byIndex = new Map((await whole.rank(input, {})).items.map((item) => [item.index, item]))
      await whole.close()
      t.mock.timers.enable({ apis: ['setTimeout'] })
      for (let hit = 0; hit < 4; hit++) {
        let clock = 0
        let runs = 0
        const counted = countHandles({ ...engine, close: async () => {} })
        const late: Engine = {
          ...counted,
          score: (...args) => {
            const logits = counted.score(...args)
            if (runs++ === hit) {
              clock = 51
              t.mock.timers.tick(51)
            }
            return logits
          },
        }
        const ranker = createRanker({
          engine: late,
          bundle: model.bundle,
          microBatchSize: 2,
          maxKvBytes: 1e9,
          now: () => clock,
        })
        const { items, scored, microBatches, kv } = await ranker.rank(input, {
          deadlineMs: 50,
          partial: true,
        })
        assert.deepEqual([scored, microBatches, kv.state], [2 * hit, hit, 'miss'])
        assert.deepEqual(
          items.map(({ index }) => index).sort((a, b) => a - b),
          [...Array(2 * hit).keys()],
        )
        for (const item of items) assert.deepEqual(item, byIndex.get(item.index))
        assert.equal((await ranker.rank(input, {})).kv.state, 'hit', 'its K/V was there by then')
        await ranker.close()
        assert.equal(counted.live(), 0)
      }
    })

    test('ends a request of seconds within a deadline of 1 ms, on real clocks', async () => {
      const { rank, close, live } = open()
      const long = request(30, 20_000)
      await assert.rejects(rank(long, { deadlineMs: 1 }), { code: 'DEADLINE_EXCEEDED' })
      const { items, scored } = await rank(long, { deadlineMs: 100, partial: true })
      assert.ok(scored < 20_000, `${scored} of 20,000 scored`)
      assert.equal(items.length, scored)
      await idle(engine)
      await close()
      assert.equal(live(), 0)
    })

    test('of many users at once, in the middle of whatever, leaves nothing behind', async () => {
      const { rank, close, live } = open({ maxKvBytes: 20_000 })
      const random = createRandom(11)
      const answers = Array.from({ length: 120 }, async (_, i) => {
        const client = new AbortController()
        const input = request(i % 31, 1 + (i % 9), `u${i % 5}`)
        const answer = rank(input, { signal: client.signal, partial: i % 2 === 0 })
        // Some turns of the event loop later: queued, prefilling, between micro-batches or done.
        for (let turn = Math.floor(random() * 200); turn > 0; turn--) {
          await new Promise((resolve) => setImmediate(resolve))
        }
        client.abort()
        return answer.then(
          () => 'answered',
          ({ code }) => code,
        )
      })
      const outcomes = new Set(await Promise.all(answers))
      outcomes.delete('answered')
      assert.deepEqual([...outcomes], ['CANCELLED'])
      await idle(engine)
      await close()
      assert.equal(live(), 0)
    })
  })
}
