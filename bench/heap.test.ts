import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createRandom } from '../model/random.js'
import { bestOf } from './heap.js'

test('the best of JavaScript are those of a sort, ties by place', () => {
  const random = createRandom(3)
  for (const [items, width, k] of [
    [1, 3, 5],
    [50, 4, 1],
    [200, 3, 17],
    [200, 1, 200],
  ] as const) {
    // Few different values: many ties.
    const rows = Float32Array.from({ length: items * width }, () => Math.floor(random() * 3))
    const user = Float32Array.from({ length: width }, () => Math.floor(random() * 3) - 1)
    const scores = Array.from({ length: items }, (_, place) =>
      user.reduce((sum, value, i) => sum + value * (rows[place * width + i] ?? 0), 0),
    )
    const sorted = scores
      .map((_, i) => i)
      .sort((a, b) => (scores[b] ?? 0) - (scores[a] ?? 0) || a - b)
    assert.deepEqual(bestOf(rows, user, k), sorted.slice(0, k))
  }
})
