import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { deferred } from '../model/deferred.js'
import { RankError } from '../model/errors.js'
import { plainTokens } from '../test/counting-engine.js'
import { createFakeRedisKv } from '../test/fake-redis-kv.js'
import { digestChain } from './digest.js'
import { userHash } from './key.js'
import type { Head } from './page.js'
import type { RedisKv } from './redis-kv.js'
import { createTier2 } from './tier2.js'

const USER = userHash('u')
const chain = digestChain(plainTokens(70))
const head: Head = { chain, raw: new Uint8Array(0), leftMs: 60_000 }
const BUDGET_MS = 10_000
const rows = { tokens: 70, layers: [] }

const never = () => new Promise<never>(() => {})
const fail = () => Promise.reject(new Error('connection is closed'))
const rot = () => Promise.reject(new RankError('KV_CORRUPT', 'as asked'))

async function open() {
  const kv = createFakeRedisKv()
  await kv.write(USER, chain, undefined, rows)
  const states: string[] = []
  const tier2 = createTier2(kv, (state) => states.push(state))
  return { kv, states, tier2 }
}

describe('createTier2', () => {
  test('finds what is there, and says when nothing is', async () => {
    const { tier2 } = await open()
    const head = await tier2.head(USER, BUDGET_MS)
    assert.deepEqual(head?.chain, chain)
    assert.ok(head !== undefined)
    assert.equal((await tier2.fetch(USER, head, 64, BUDGET_MS))?.tokens, 64)
    assert.equal(await tier2.head(userHash('other'), BUDGET_MS), undefined)
    assert.deepEqual(tier2.stats(), {
      lookups: { found: 2, absent: 1, corrupt: 0, timeout: 0, error: 0, open: 0 },
      isOpen: false,
      opened: 0,
      readBytes: 128,
    })
  })

  test('gives nothing when the budget is over, and stops asking after three times', async () => {
    const { tier2, kv, states } = await open()
    kv.behave(never)
    for (let i = 0; i < 5; i++) assert.equal(await tier2.head(USER, 1), undefined)
    assert.equal(kv.calls.head, 3)
    assert.deepEqual(states, ['open'])
    const { lookups, isOpen } = tier2.stats()
    assert.deepEqual([lookups.timeout, lookups.open, isOpen], [3, 2, true])
    tier2.stop()
  })

  test('what fails is nothing, and never an error', async () => {
    const { tier2, kv } = await open()
    const head = await tier2.head(USER, BUDGET_MS)
    assert.ok(head !== undefined)
    kv.behave(fail)
    for (let i = 0; i < 3; i++) {
      assert.equal(await tier2.fetch(USER, head, 64, BUDGET_MS), undefined)
    }
    assert.equal(await tier2.head(USER, BUDGET_MS), undefined)
    assert.deepEqual(tier2.stats().lookups, {
      ...{ found: 1, absent: 0, corrupt: 0, timeout: 0, error: 3, open: 1 },
    })
    tier2.stop()
  })

  test('closes by itself once Redis answers again', async () => {
    const { tier2, kv, states } = await open()
    kv.behave(fail)
    for (let i = 0; i < 3; i++) await tier2.head(USER, BUDGET_MS)
    kv.behave(undefined)
    while (tier2.stats().isOpen) await new Promise(setImmediate)
    assert.deepEqual(states, ['open', 'closed'])
    assert.ok((await tier2.head(USER, BUDGET_MS)) !== undefined)
  })

  test('stays open while an answer takes longer than a caller would wait', async () => {
    const { tier2, kv, states } = await open()
    const late = () => new Promise<never>((_, reject) => setTimeout(reject, 100))
    kv.behave(late)
    for (let i = 0; i < 3; i++) await tier2.head(USER, 1)
    // The three, and probes that are given up before they could end.
    while (kv.calls.head < 5) await new Promise(setImmediate)
    assert.deepEqual(states, ['open'])
    tier2.stop()
  })

  test('gives memory back of what comes too late, and of what is empty', async () => {
    const kv = createFakeRedisKv()
    const gate = deferred<void>()
    const slow: RedisKv = {
      ...kv,
      async fetch(...args) {
        await gate.promise
        return kv.fetch(...args)
      },
    }
    const tier2 = createTier2(slow, () => {})
    const controller = new AbortController()
    const left = tier2.fetch(USER, head, 64, 60_000, controller.signal)
    controller.abort(new RankError('CANCELLED', 'left'))
    await assert.rejects(left, { code: 'CANCELLED' })
    assert.equal(await tier2.fetch(USER, head, 64, 1), undefined)
    assert.equal(kv.calls.fetch, 0)
    gate.resolve()
    await new Promise(setImmediate)
    assert.deepEqual([kv.calls.fetch, kv.lent.count], [2, 0])
    assert.equal(await tier2.fetch(USER, head, 0, BUDGET_MS), undefined)
    assert.equal(kv.lent.count, 0)
    const found = await tier2.fetch(USER, head, 64, BUDGET_MS)
    assert.equal(kv.lent.count, 1)
    found?.done()
    assert.equal(kv.lent.count, 0)
    tier2.stop()
  })

  test('what came in time stays lent, though the budget ends in the same turn', async (t) => {
    // Real ones end in two turns where the machine is busy between them.
    t.mock.timers.enable({ apis: ['setTimeout'] })
    const kv = createFakeRedisKv()
    const ms = 5
    const barely: RedisKv = {
      ...kv,
      // Behind that of the budget.
      async fetch(...args) {
        await new Promise((resolve) => setTimeout(resolve, ms))
        return kv.fetch(...args)
      },
    }
    const tier2 = createTier2(barely, () => {})
    const asked = tier2.fetch(USER, head, 64, ms)
    t.mock.timers.tick(ms)
    const found = await asked
    assert.ok(found !== undefined)
    for (let turn = 0; turn < 3; turn++) await new Promise(setImmediate)
    assert.equal(kv.lent.count, 1)
    found.done()
    tier2.stop()
  })

  test('corrupt entries are counted and leave the circuit closed', async () => {
    const { tier2, kv } = await open()
    kv.behave(rot)
    for (let i = 0; i < 10; i++) assert.equal(await tier2.head(USER, BUDGET_MS), undefined)
    assert.deepEqual([tier2.stats().lookups.corrupt, tier2.stats().isOpen], [10, false])
  })

  test("rejects with the caller's own reason, which is no failure of Redis", async () => {
    const { tier2, kv } = await open()
    kv.behave(never)
    const controller = new AbortController()
    const left = tier2.head(USER, BUDGET_MS, controller.signal)
    controller.abort(new RankError('CANCELLED', 'left'))
    await assert.rejects(left, { code: 'CANCELLED' })
    await assert.rejects(tier2.head(USER, BUDGET_MS, controller.signal), { code: 'CANCELLED' })
    assert.deepEqual(tier2.stats().lookups, {
      ...{ found: 0, absent: 0, corrupt: 0, timeout: 0, error: 0, open: 0 },
    })
  })
})
