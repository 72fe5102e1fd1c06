import assert from 'node:assert/strict'
import { test } from 'node:test'
import { verdict } from './report-latency.js'

test('the verdict names every point on its side, the most extreme first', () => {
  const ratios = [
    { at: 'a', ratio: 1.5 },
    { at: 'b', ratio: 0.5 },
    { at: 'c', ratio: 4.25 },
    { at: 'd', ratio: 1 },
  ]
  assert.equal(
    verdict('P', ratios),
    'Against P, ours over theirs: **slower** at c (4.25); a (1.50), not slower at b (0.50); d (1.00).',
  )
  assert.equal(
    verdict('P', ratios.slice(0, 1)),
    'Against P, ours over theirs: **slower** at a (1.50).',
  )
  assert.equal(
    verdict('P', ratios.slice(1, 2)),
    'Against P, ours over theirs: not slower at b (0.50).',
  )
})
