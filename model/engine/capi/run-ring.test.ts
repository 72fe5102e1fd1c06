import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { openRing, ringMemory } from './run-ring.js'

const CAPACITY = 256
const LARGEST = 2 ** 31 - 1

/** A ring as two threads see it, after `count` records. */
function openBoth(count = 0) {
  const memory = ringMemory()
  new Int32Array(memory, 0, 3).fill(count)
  return { from: openRing(memory), to: openRing(memory) }
}

function recordOf(n: number): bigint[] {
  return Array.from({ length: 8 }, (_, i) => BigInt(8 * n + i))
}

describe('openRing', () => {
  test('gives every record once and in order, also when it is full and its counts wrap around', () => {
    const first = LARGEST - CAPACITY
    const { from, to } = openBoth(first)
    let posted = 0
    let taken = 0
    for (let round = 0; round < 8; round++) {
      while (from.hasRoom()) {
        assert.equal(from.post(recordOf(posted)), (first + posted) | 0)
        posted++
      }
      assert.equal(posted - taken, CAPACITY)
      // Part of it, so that rounds do not begin at the same place.
      for (let i = 0; i < 100; i++) {
        assert.deepEqual(to.take(), { id: (first + taken) | 0, record: recordOf(taken) })
        taken++
      }
    }
    assert.ok(first + taken > LARGEST)
  })

  test('drops what nobody took when it is drained, and has room again', () => {
    const { from, to } = openBoth()
    for (let n = 0; from.hasRoom(); n++) from.post(recordOf(n))
    to.take()
    to.done()
    from.drain()
    assert.ok(from.hasRoom())
    const id = from.post(recordOf(7))
    assert.deepEqual(to.take(), { id, record: recordOf(7) })
  })
})
