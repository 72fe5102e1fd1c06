import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { KvHandle } from '../model/engine/engine.js'
import { createRandom } from '../model/random.js'
import { plainTokens } from '../test/counting-engine.js'
import { digestChain } from './digest.js'
import { createMemoryCache, type Lease } from './memory.js'

const chain = digestChain(plainTokens(1))

/** Handles that count how often they were released. */
function createHandles() {
  const released = new Map<KvHandle, number>()
  const dead = new Set<KvHandle>()
  return {
    released,
    dead,
    make(bytes: number): KvHandle {
      const handle = { tokens: 1, bytes, device: 'test' }
      released.set(handle, 0)
      return handle
    },
    release: (handle: KvHandle) => {
      released.set(handle, (released.get(handle) ?? 0) + 1)
    },
    isAlive: (handle: KvHandle) => !dead.has(handle) && released.get(handle) === 0,
  }
}

describe('createMemoryCache', () => {
  test('gives back what was stored, and nothing for other keys', () => {
    const handles = createHandles()
    const memory = createMemoryCache(handles, 100)
    const handle = handles.make(10)
    memory.store('a', handle, chain).done()
    assert.equal(memory.lookup('b'), undefined)
    const lease = memory.lookup('a')
    assert.equal(lease?.handle, handle)
    assert.equal(lease?.chain, chain)
    lease?.done()
    assert.deepEqual(memory.stats(), { entries: 1, kvBytes: 10, maxKvBytes: 100, evictions: 0 })
    assert.equal(handles.released.get(handle), 0)
  })

  test('evicts the least recently used first', () => {
    const handles = createHandles()
    const memory = createMemoryCache(handles, 30)
    for (const key of ['a', 'b', 'c']) memory.store(key, handles.make(10), chain).done()
    memory.lookup('a')?.done()
    memory.store('d', handles.make(10), chain).done()
    assert.deepEqual(
      ['a', 'b', 'c', 'd'].map((key) => memory.lookup(key) !== undefined),
      [true, false, true, true],
    )
    assert.equal(memory.stats().evictions, 1)
  })

  test('releases a replaced or evicted handle only when its last user is done', () => {
    const handles = createHandles()
    const memory = createMemoryCache(handles, 10)
    const first = handles.make(10)
    const stored = memory.store('a', first, chain)
    const found = memory.lookup('a')
    const second = handles.make(10)
    memory.store('a', second, chain).done()
    assert.equal(memory.stats().evictions, 0, 'replacing is not evicting')
    stored.done()
    assert.equal(handles.released.get(first), 0)
    found?.done()
    assert.equal(handles.released.get(first), 1)
    memory.store('b', handles.make(10), chain).done()
    assert.equal(handles.released.get(second), 1)
  })

  test('does not keep an entry beyond the whole budget, and drops the key’s former one', () => {
    const handles = createHandles()
    const memory = createMemoryCache(handles, 10)
    const [small, big] = [handles.make(10), handles.make(11)]
    memory.store('a', small, chain).done()
    const lease = memory.store('a', big, chain)
    assert.equal(memory.lookup('a'), undefined)
    assert.equal(handles.released.get(small), 1)
    assert.equal(handles.released.get(big), 0, 'its request still uses it')
    lease.done()
    assert.equal(handles.released.get(big), 1)
    assert.equal(memory.stats().kvBytes, 0)
  })

  test('drops a handle whose worker died', () => {
    const handles = createHandles()
    const memory = createMemoryCache(handles, 100)
    const handle = handles.make(10)
    memory.store('a', handle, chain).done()
    handles.dead.add(handle)
    assert.equal(memory.lookup('a'), undefined)
    assert.equal(memory.stats().entries, 0)
    assert.equal(handles.released.get(handle), 1)
  })

  test('never passes its budget and releases every handle exactly once, in random use', () => {
    for (let seed = 1; seed <= 20; seed++) {
      const random = createRandom(seed)
      const below = (limit: number) => Math.floor(random() * limit)
      const maxKvBytes = [0, 1, 50, 300][seed % 4] ?? 0
      const handles = createHandles()
      const memory = createMemoryCache(handles, maxKvBytes)
      const leases: Lease[] = []
      for (let step = 0; step < 500; step++) {
        const what = `seed ${seed}, step ${step}`
        const key = `user ${below(8)}`
        const action = random()
        if (action < 0.4) {
          leases.push(memory.store(key, handles.make(1 + below(60)), chain))
        } else if (action < 0.7) {
          const lease = memory.lookup(key)
          if (lease !== undefined) {
            assert.ok(handles.isAlive(lease.handle), what)
            leases.push(lease)
          }
        } else if (action < 0.98) {
          leases.splice(below(leases.length), 1)[0]?.done()
        } else if (action < 0.99) {
          memory.clear()
          assert.equal(memory.stats().entries, 0, what)
        } else {
          for (const handle of handles.released.keys()) {
            if (random() < 0.1 && !leases.some((lease) => lease.handle === handle))
              handles.dead.add(handle)
          }
        }
        assert.ok(memory.stats().kvBytes <= Math.max(1, maxKvBytes), what)
        for (const { handle } of leases) assert.equal(handles.released.get(handle), 0, what)
        for (const times of handles.released.values()) assert.ok(times <= 1, what)
      }
      for (const lease of leases) lease.done()
      memory.clear()
      for (const times of handles.released.values()) assert.equal(times, 1, `seed ${seed}`)
    }
  })
})
