import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createMemoryEvents } from './events-memory.js'
import { userHash } from './key.js'

const LIMITS = { maxStoredEvents: 100, slack: 10, ttlSec: 60 }
const eventsOf = (count: number) =>
  Array.from({ length: count }, (_, time) => ({ time, item: 'x'.repeat(100) }))

describe('createMemoryEvents', () => {
  test('forgets a user some time after the last append, not after the last look', async () => {
    let nowMs = 1000
    const store = createMemoryEvents({ ...LIMITS, maxBytes: 1e6, now: () => nowMs })
    const user = userHash('u')
    await store.append(user, eventsOf(1))
    nowMs += 40_000
    await store.append(user, eventsOf(2))
    nowMs += 40_000
    assert.equal((await store.get(user)).events.length, 2)
    nowMs += 40_000
    assert.equal((await store.get(user)).events.length, 0)
  })

  test('stays within its bytes: the least recently used users go, and are counted', async () => {
    const maxBytes = 100_000
    const store = createMemoryEvents({ ...LIMITS, maxBytes })
    for (let i = 0; i < 50; i++) {
      await store.append(userHash(`u${i}`), eventsOf(10))
      await store.get(userHash('u0'))
      const stats = store.stats()
      assert.ok(stats.kind === 'memory' && stats.bytes <= maxBytes)
    }
    const stats = store.stats()
    assert.ok(stats.kind === 'memory')
    assert.ok(stats.users > 2 && stats.users < 50, `${stats.users} users`)
    assert.equal(stats.evictions, 50 - stats.users)
    assert.equal((await store.get(userHash('u0'))).events.length, 10)
    assert.equal((await store.get(userHash('u1'))).events.length, 0)
  })

  test('what it gives does not change with what was posted', async () => {
    const store = createMemoryEvents({ ...LIMITS, maxBytes: 1e6 })
    const user = userHash('u')
    const posted = { time: 1, item: 'a', actions: ['click'] }
    await store.append(user, [posted])
    posted.actions.push('like')
    const { events } = await store.get(user)
    assert.deepEqual(events, [{ time: 1, item: 'a', actions: ['click'] }])
  })
})
