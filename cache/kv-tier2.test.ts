import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { type HistoryTokens, sliceTokens } from '../model/tokens.js'
import { contentOf, createCountingEngine, plainTokens } from '../test/counting-engine.js'
import { userHash } from './key.js'
import { createKvCache } from './kv.js'
import { createMemoryCache, type Lease } from './memory.js'

const USER = userHash('u')
const all = plainTokens(200)
const first = (length: number) => sliceTokens(all, 0, length)

/** A cache whose tier 2 has the first `remoteTokens` tokens of every history. */
function open({ remoteTokens = 0, appendIsExact = true } = {}) {
  const engine = createCountingEngine()
  const memory = createMemoryCache(engine, 1e9)
  const offered: Lease[] = []
  const asked: number[] = []
  const kv = createKvCache({
    engine,
    memory,
    appendIsExact,
    async remote(_user, tokens, _chain, here) {
      asked.push(here)
      const covered = Math.min(remoteTokens, tokens.length)
      if (covered <= here) return undefined
      return { handle: await engine.prefill(sliceTokens(tokens, 0, covered)), covered }
    },
    writes: { offer: (_user, lease) => offered.push(lease) },
  })
  const use = async (tokens: HistoryTokens) => {
    const { lease, ...result } = await kv.obtain(USER, tokens)
    assert.equal(engine.contentOf(lease.handle), contentOf(tokens))
    lease.done()
    return result
  }
  return { engine, kv, memory, offered, asked, use }
}

describe('createKvCache with a tier 2', () => {
  test('takes what tier 2 has, prefills the rest, and says where it was', async () => {
    const { use } = open({ remoteTokens: 100 })
    assert.deepEqual(await use(first(130)), {
      ...{ state: 'stale', tier: 2, reusedTokens: 100, prefilledTokens: 30 },
    })
    assert.deepEqual(await use(first(130)), {
      ...{ state: 'hit', tier: 1, reusedTokens: 130, prefilledTokens: 0 },
    })
  })

  test('a whole history found in tier 2 is a hit and is not written again', async () => {
    const { use, offered } = open({ remoteTokens: 200 })
    assert.deepEqual(await use(first(130)), {
      ...{ state: 'hit', tier: 2, reusedTokens: 130, prefilledTokens: 0 },
    })
    assert.equal(offered.length, 0)
  })

  test('asks tier 2 only for more than tier 1 has', async () => {
    const { use, asked } = open({ remoteTokens: 100 })
    await use(first(120))
    await use(first(140))
    await use(first(140))
    assert.deepEqual(asked, [0, 120])
    const whole = open({ remoteTokens: 0, appendIsExact: false })
    await whole.use(first(120))
    await whole.use(first(140))
    assert.deepEqual(whole.asked, [0, 0])
  })

  test('offers what was computed once its request lets go of it, and keeps it until then', async () => {
    const { kv, engine, offered, memory } = open({ remoteTokens: 64 })
    const { lease } = await kv.obtain(USER, first(90))
    assert.equal(offered.length, 0)
    lease.done()
    assert.equal(offered.length, 1)
    memory.clear()
    assert.equal(engine.contentOf(lease.handle), contentOf(first(90)))
    offered[0]?.done()
    assert.equal(engine.live(), 0)
  })

  test('offers nothing of a user who was forgotten meanwhile', async () => {
    const { kv, engine, offered } = open()
    const during = kv.obtain(USER, first(90))
    kv.forget(USER)
    ;(await during).lease.done()
    const { lease } = await kv.obtain(USER, first(90))
    kv.forget(USER)
    lease.done()
    assert.deepEqual([offered.length, engine.live()], [0, 0])
    const after = await kv.obtain(USER, first(90))
    after.lease.done()
    assert.equal(offered.length, 1)
  })

  test('leaks nothing when the rest cannot be prefilled', async () => {
    const { kv, engine, memory } = open({ remoteTokens: 64 })
    const failing = kv.obtain(USER, first(90))
    await new Promise(setImmediate)
    engine.failNext(1)
    await assert.rejects(failing, { code: 'WORKER_CRASHED' })
    memory.clear()
    assert.equal(engine.live(), 0)
  })
})
