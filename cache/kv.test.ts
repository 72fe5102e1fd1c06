import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createRandom } from '../model/random.js'
import { type HistoryTokens, sliceTokens } from '../model/tokens.js'
import {
  BYTES_PER_TOKEN,
  contentOf,
  createCountingEngine,
  edited,
  plainTokens,
} from '../test/counting-engine.js'
import { createKvCache } from './kv.js'
import { createMemoryCache } from './memory.js'

const ROOM = 1e9

function open({ maxKvBytes = ROOM, appendIsExact = true } = {}) {
  const engine = createCountingEngine()
  const memory = createMemoryCache(engine, maxKvBytes)
  const kv = createKvCache(engine, memory, appendIsExact)
  /** Obtains, checks the content, ends the lease. */
  const use = async (tokens: HistoryTokens, key = 'u', what = '') => {
    const { lease, ...result } = await kv.obtain(key, tokens)
    assert.equal(engine.contentOf(lease.handle), contentOf(tokens), what)
    assert.equal(lease.handle.tokens, tokens.length, what)
    lease.done()
    return result
  }
  return { engine, memory, kv, use }
}

const all = plainTokens(200)
const first = (length: number) => sliceTokens(all, 0, length)

describe('createKvCache', () => {
  test('misses first, hits then, and appends only what is new', async () => {
    const { use, engine } = open()
    const result = (state: string, reusedTokens: number, prefilledTokens: number) => ({
      state,
      reusedTokens,
      prefilledTokens,
    })
    assert.deepEqual(await use(first(10)), result('miss', 0, 10))
    assert.deepEqual(await use(first(10)), result('hit', 10, 0))
    assert.deepEqual(await use(first(13)), result('stale', 10, 3))
    assert.deepEqual(await use(first(13)), result('hit', 13, 0))
    assert.deepEqual(await use(first(13), 'other'), result('miss', 0, 13))
    assert.equal(engine.counts.tokens, 10 + 3 + 13)
  })

  test('reuses the common pages of a history that was changed behind them', async () => {
    const { use } = open()
    await use(first(150))
    assert.deepEqual(await use(edited(first(150), 130)), {
      state: 'stale',
      reusedTokens: 128,
      prefilledTokens: 22,
    })
  })

  test('answers a shorter history by a view, and keeps the longer entry', async () => {
    const { use, engine } = open()
    await use(first(150))
    assert.deepEqual(await use(first(128)), { state: 'hit', reusedTokens: 128, prefilledTokens: 0 })
    assert.equal((await use(first(100))).reusedTokens, 64)
    await use(first(150))
    assert.ok(engine.live() >= 1)
  })

  test('a late, shorter history leaves the longer entry; one that really changed replaces it', async () => {
    const { use } = open()
    await use(first(200))
    for (let length = 65; length < 200; length += 7) {
      await use(first(length))
      assert.equal((await use(first(200))).state, 'hit', `after ${length} tokens`)
    }
    const changed = edited(first(150), 30)
    assert.equal((await use(changed)).state, 'miss')
    assert.equal((await use(changed)).state, 'hit')
    const later = edited(first(149), 70)
    assert.deepEqual(await use(later), { state: 'miss', reusedTokens: 0, prefilledTokens: 149 })
    assert.equal((await use(later)).state, 'hit')
  })

  test('prefill() neither looks up nor keeps', async () => {
    const { use, kv, engine, memory } = open()
    await use(first(20))
    const { lease, state } = await kv.prefill(first(20))
    assert.equal(state, 'miss')
    assert.equal(engine.contentOf(lease.handle), contentOf(first(20)))
    lease.done()
    assert.equal(memory.stats().entries, 1)
    assert.equal(engine.live(), 1)
    assert.equal((await use(first(20))).state, 'hit')
  })

  test('an edited token can never hit, wherever it is', async () => {
    for (const length of [1, 5, 64, 65, 128, 130]) {
      for (let at = 0; at < length; at++) {
        const { use } = open()
        await use(first(length))
        const { state, reusedTokens } = await use(edited(first(length), at))
        assert.notEqual(state, 'hit', `token ${at} of ${length}`)
        assert.ok(reusedTokens <= at, `token ${at} of ${length}`)
      }
    }
  })

  test('rebuilds where append is not exact: only the very same history hits', async () => {
    const { use, engine } = open({ appendIsExact: false })
    for (const [length, state] of [
      [100, 'miss'],
      [100, 'hit'],
      [101, 'miss'],
      [101, 'hit'],
      [64, 'miss'],
      [64, 'hit'],
      [0, 'miss'],
    ] as const) {
      const before = engine.counts.tokens
      assert.equal((await use(first(length))).state, state, `${length} tokens`)
      assert.equal(engine.counts.tokens - before, state === 'hit' ? 0 : length)
    }
  })

  test('concurrent calls for one history share one prefill, and each ends its own lease', async () => {
    const { kv, engine, memory } = open()
    const results = await Promise.all(Array.from({ length: 50 }, () => kv.obtain('u', first(90))))
    assert.equal(engine.counts.prefills, 1)
    assert.deepEqual(results.map(({ state }) => state).sort(), [
      ...new Array(49).fill('hit'),
      'miss',
    ])
    memory.clear()
    for (const { lease } of results) {
      assert.equal(engine.contentOf(lease.handle), contentOf(first(90)))
      lease.done()
    }
    assert.equal(engine.live(), 0)
  })

  test('a prefill that fails is its caller’s error alone: the next one builds', async () => {
    const { kv, engine, use } = open()
    engine.failNext(2)
    const outcomes = await Promise.allSettled(
      Array.from({ length: 10 }, () => kv.obtain('u', first(20))),
    )
    assert.deepEqual(outcomes.map(({ status }) => status).sort(), [
      ...new Array(8).fill('fulfilled'),
      'rejected',
      'rejected',
    ])
    assert.equal(engine.counts.prefills, 3)
    assert.equal((await use(first(20))).state, 'hit')
    engine.failNext(1)
    await assert.rejects(kv.obtain('u', first(30)), { code: 'WORKER_CRASHED' })
    assert.deepEqual(await use(first(30)), {
      state: 'stale',
      reusedTokens: 20,
      prefilledTokens: 10,
    })
  })

  test('a failed append or miss leaks no lease', async () => {
    const { kv, engine, memory, use } = open()
    await use(first(20))
    engine.failNext(2)
    await assert.rejects(kv.obtain('u', first(30)))
    await assert.rejects(kv.obtain('u', plainTokens(30, 5)))
    memory.clear()
    assert.equal(engine.live(), 0)
  })

  test('a caller that leaves ends its own prefill, and whoever waited for it builds', async () => {
    const { kv, engine, memory } = open()
    const leader = new AbortController()
    const waiter = new AbortController()
    const gone = new Error('gone')
    const led = kv.obtain('u', first(90), leader.signal)
    const left = kv.obtain('u', first(90), waiter.signal)
    const stayed = kv.obtain('u', first(90))
    waiter.abort(gone)
    await assert.rejects(left, gone)
    assert.equal(engine.counts.prefills, 1, 'the leader goes on')
    leader.abort(gone)
    await assert.rejects(led, gone)
    const { lease, state } = await stayed
    assert.equal(state, 'miss')
    assert.equal(engine.counts.prefills, 2)
    lease.done()
    memory.clear()
    assert.equal(engine.live(), 0)
  })

  test('a waiter that leaves does not end the prefill it waited for', async () => {
    const { kv, engine } = open()
    const waiter = new AbortController()
    const led = kv.obtain('u', first(90))
    const left = kv.obtain('u', first(90), waiter.signal)
    waiter.abort(new Error('gone'))
    await assert.rejects(left, /gone/)
    const { lease, state } = await led
    assert.equal(state, 'miss')
    assert.equal(engine.contentOf(lease.handle), contentOf(first(90)))
    lease.done()
    assert.equal(engine.counts.prefills, 1)
  })

  test('an append that is cancelled leaves the entry as it was', async () => {
    const { kv, engine, memory, use } = open()
    await use(first(20))
    const client = new AbortController()
    const appending = kv.obtain('u', first(30), client.signal)
    client.abort(new Error('gone'))
    await assert.rejects(appending, /gone/)
    assert.equal((await use(first(20))).state, 'hit')
    await assert.rejects(kv.prefill(first(5), client.signal), /gone/)
    memory.clear()
    assert.equal(engine.live(), 0)
  })

  test('rebuilds when the worker that held the entry died', async () => {
    const { kv, engine, use } = open()
    const { lease } = await kv.obtain('u', first(20))
    lease.done()
    engine.kill(lease.handle)
    assert.equal((await use(first(25))).state, 'miss')
    assert.equal((await use(first(25))).state, 'hit')
  })

  test('an empty history is built each time and breaks nothing', async () => {
    const { use } = open()
    for (let i = 0; i < 3; i++) assert.equal((await use(first(0))).reusedTokens, 0)
    await use(first(5))
    await use(first(0))
    await use(first(5))
  })

  test('what was forgotten is gone, also when it was being built or appended to', async () => {
    const { kv, engine, memory, use } = open()
    await use(first(20))
    assert.equal(kv.tokensOf('u'), 20)
    kv.forget('u')
    assert.equal(kv.tokensOf('u'), 0)
    assert.equal(engine.live(), 0)

    for (const length of [20, 30]) {
      // The first time a prefill, then an append.
      await use(first(length), 'other')
      const building = kv.obtain('u', first(length))
      kv.forget('u')
      const { lease } = await building
      assert.equal(engine.contentOf(lease.handle), contentOf(first(length)), 'its caller has it')
      assert.equal(kv.tokensOf('u'), 0)
      lease.done()
      if (length === 20) await use(first(10))
    }
    assert.equal(kv.tokensOf('other'), 30, 'nobody else’s')
    kv.forgetAll()
    assert.equal(memory.stats().entries, 0)
    assert.equal(engine.live(), 0)
  })

  test('who waits for a prefill that is forgotten builds its own, kept if it began after', async () => {
    const { kv, engine } = open()
    const before = kv.obtain('u', first(20))
    const alsoBefore = kv.obtain('u', first(20))
    kv.forget('u')
    const after = kv.obtain('u', first(20))
    const results = await Promise.all([before, alsoBefore, after])
    for (const { lease } of results) lease.done()
    assert.equal(engine.counts.prefills, 3)
    assert.equal(kv.tokensOf('u'), 20)
    assert.equal(engine.live(), 1)
  })

  test('an epoch that began before the history was read holds for what is made of it', async () => {
    const { kv, engine } = open()
    for (const forget of [() => kv.forget('u'), () => kv.forgetAll()]) {
      const epoch = kv.begin('u')
      forget()
      const { lease } = await kv.obtain('u', first(20), undefined, epoch)
      lease.done()
      epoch.end()
      assert.equal(kv.tokensOf('u'), 0)
    }
    assert.equal(engine.live(), 0)
  })

  test('gives exactly the tokens asked for and leaks nothing, in random concurrent use', async () => {
    for (let seed = 1; seed <= 12; seed++) {
      const random = createRandom(seed)
      const below = (limit: number) => Math.floor(random() * limit)
      const maxKvBytes = [0, 150, 400, ROOM][seed % 4] ?? 0
      const { engine, memory, kv, use } = open({
        maxKvBytes: maxKvBytes * BYTES_PER_TOKEN,
        appendIsExact: seed % 3 !== 0,
      })
      const lane = async () => {
        for (let step = 0; step < 60; step++) {
          const length = below(201)
          const history = random() < 0.7 ? first(length) : plainTokens(length, 1 + below(2))
          const tokens = length > 0 && random() < 0.3 ? edited(history, below(length)) : history
          const what = `seed ${seed}, step ${step}`
          if (random() < 0.05) kv.forget(`u${below(3)}`)
          if (random() < 0.01) kv.forgetAll()
          if (random() < 0.1) {
            const client = new AbortController()
            const leaving = kv.obtain(`u${below(3)}`, tokens, client.signal)
            const left = leaving.then(
              ({ lease }) => lease.done(),
              (error) =>
                assert.ok(error.message === 'left' || error.code === 'WORKER_CRASHED', what),
            )
            if (random() < 0.5) await new Promise((resolve) => setImmediate(resolve))
            client.abort(new Error('left'))
            await left
          } else if (random() < 0.05) {
            engine.failNext(1)
            await kv.obtain(`u${below(3)}`, tokens).then(
              ({ lease }) => lease.done(),
              ({ code }) => assert.equal(code, 'WORKER_CRASHED', what),
            )
          } else {
            await use(tokens, `u${below(3)}`, what).catch((error) => {
              // Another lane asked for a failure; anything else is ours.
              if (error.code !== 'WORKER_CRASHED') throw error
            })
          }
          assert.ok(memory.stats().kvBytes <= Math.max(1, memory.stats().maxKvBytes), what)
        }
      }
      await Promise.all([lane(), lane(), lane(), lane()])
      memory.clear()
      assert.equal(engine.live(), 0, `seed ${seed}`)
    }
  })
})
