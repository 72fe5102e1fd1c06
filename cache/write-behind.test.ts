import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { deferred } from '../model/deferred.js'
import { sliceTokens } from '../model/tokens.js'
import { plainTokens } from '../test/counting-engine.js'
import { createFakeRedisKv } from '../test/fake-redis-kv.js'
import { digestChain } from './digest.js'
import { userHash } from './key.js'
import type { Lease } from './memory.js'
import { createWriteBehind } from './write-behind.js'

const MiB = 2 ** 20
const USER = userHash('u')
const all = plainTokens(300)
const first = (length: number) => sliceTokens(all, 0, length)

function open() {
  const kv = createFakeRedisKv()
  const exported: number[] = []
  let held = 0
  let clock = 0
  const writes = createWriteBehind({
    kv,
    appendIsExact: true,
    async rowsOf({ chain, handle }, start) {
      if (handle.device === 'gone') throw new Error('its worker died')
      exported.push(start)
      const tokens = chain.tokens - start
      return { tokens, times: new Float64Array(tokens), layers: [] }
    },
    now: () => clock,
  })
  const leaseOf = (tokens: number, bytes = 100, device = 'test'): Lease => {
    held++
    return {
      handle: { tokens, bytes, device },
      chain: digestChain(first(tokens)),
      done: () => {
        held--
      },
    }
  }
  const idle = async () => {
    do await new Promise(setImmediate)
    while (held > 0)
  }
  return {
    kv,
    writes,
    exported,
    leaseOf,
    idle,
    held: () => held,
    advance: (ms: number) => {
      clock += ms
    },
  }
}

describe('createWriteBehind', () => {
  test('writes after the turn in which K/V was offered, and then lets it go', async () => {
    const { kv, writes, leaseOf, idle, held } = open()
    writes.offer(USER, leaseOf(100))
    assert.deepEqual([kv.calls.head, kv.calls.write, held()], [0, 0, 1])
    await idle()
    assert.equal(kv.entry(USER)?.tokens, 100)
    assert.equal(writes.stats().written, 1)
  })

  test('exports no more than what tier 2 lacks', async () => {
    const { writes, leaseOf, idle, exported } = open()
    for (const tokens of [100, 110, 140, 140, 128, 300]) {
      writes.offer(USER, leaseOf(tokens))
      await idle()
    }
    assert.deepEqual(exported, [0, 64, 64, 128])
    const { written, current } = writes.stats()
    assert.deepEqual({ written, current }, { written: 4, current: 2 })
  })

  test('of several states of one user that wait, the newest is written', async () => {
    const { kv, writes, leaseOf, idle } = open()
    for (const tokens of [100, 110, 120]) writes.offer(USER, leaseOf(tokens))
    assert.deepEqual(writes.stats().queuedBytes, 100)
    await idle()
    assert.equal(kv.entry(USER)?.tokens, 120)
    assert.equal(kv.calls.write, 1)
    assert.equal(writes.stats().replaced, 2)
  })

  test('drops the oldest beyond its memory, and counts them', async () => {
    const { kv, writes, leaseOf, idle } = open()
    for (let u = 0; u < 5; u++) writes.offer(userHash(`u${u}`), leaseOf(64 + u, 100 * MiB))
    assert.equal(writes.stats().queuedBytes, 200 * MiB)
    assert.equal(writes.stats().dropped, 3)
    await idle()
    assert.deepEqual(
      [0, 1, 2, 3, 4].map((u) => kv.entry(userHash(`u${u}`))?.tokens),
      [undefined, undefined, undefined, 67, 68],
    )
  })

  test('after a failure it drops what waits and takes nothing for a second', async () => {
    const { kv, writes, leaseOf, idle, advance } = open()
    kv.behave(() => Promise.reject(new Error('OOM command not allowed')))
    for (let u = 0; u < 3; u++) writes.offer(userHash(`u${u}`), leaseOf(64))
    await idle()
    writes.offer(USER, leaseOf(64))
    const { error, dropped, paused } = writes.stats()
    assert.deepEqual({ error, dropped, paused }, { error: 1, dropped: 2, paused: 1 })
    kv.behave(undefined)
    advance(1_001)
    writes.offer(USER, leaseOf(64))
    await idle()
    assert.equal(kv.entry(USER)?.tokens, 64)
  })

  test('what waits of a forgotten user is not written', async () => {
    const { kv, writes, leaseOf, idle } = open()
    writes.offer(USER, leaseOf(64))
    writes.forget(USER)
    await idle()
    assert.deepEqual([kv.entry(USER), kv.calls.write], [undefined, 0])
  })

  test('what is about to be written of a forgotten user is not', async () => {
    for (const forgetsAll of [false, true]) {
      const { kv, writes, leaseOf, idle } = open()
      const answer = deferred<void>()
      kv.holdHeads(answer.promise)
      writes.offer(USER, leaseOf(64))
      await new Promise(setImmediate)
      assert.equal(kv.calls.head, 1)
      writes.offer(userHash('waiting'), leaseOf(64))
      if (forgetsAll) writes.forgetAll()
      else writes.forget(USER)
      answer.resolve()
      await idle()
      assert.equal(kv.entry(USER), undefined)
      assert.deepEqual([kv.calls.write, writes.stats().dropped], forgetsAll ? [0, 2] : [1, 1])
    }
  })

  test('a write that looks at Redis while its user is forgotten writes nothing', async () => {
    const { kv, writes, leaseOf, idle } = open()
    const head = kv.head
    kv.head = (user) => {
      writes.forget(user)
      return head(user)
    }
    writes.offer(USER, leaseOf(64))
    await idle()
    assert.deepEqual([kv.calls.head, kv.calls.write, writes.stats().dropped], [1, 0, 1])
    kv.head = head
    writes.offer(USER, leaseOf(64))
    await idle()
    assert.equal(kv.entry(USER)?.tokens, 64, 'a request of later')
  })

  test('K/V that died with its worker is dropped, and others are written', async () => {
    const { kv, writes, leaseOf, idle } = open()
    writes.offer(USER, leaseOf(64, 100, 'gone'))
    writes.offer(userHash('other'), leaseOf(64))
    await idle()
    assert.deepEqual([kv.entry(USER), kv.entry(userHash('other'))?.tokens], [undefined, 64])
    const { dropped, error } = writes.stats()
    assert.deepEqual({ dropped, error }, { dropped: 1, error: 0 })
  })

  test('closing drops what waits and refuses more', async () => {
    const { kv, writes, leaseOf, held } = open()
    writes.offer(USER, leaseOf(64))
    await writes.close()
    writes.offer(USER, leaseOf(64))
    assert.deepEqual([held(), kv.calls.write], [0, 0])
  })
})
