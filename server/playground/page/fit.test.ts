import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { fitLine, median, ticks } from './fit.js'

describe('fitLine', () => {
  test('finds the line that the points lie on', () => {
    const line = fitLine([1, 16, 64, 256].map((x) => ({ x, y: 3 + 0.25 * x })))
    assert.ok(Math.abs((line?.intercept ?? 0) - 3) < 1e-12)
    assert.ok(Math.abs((line?.slope ?? 0) - 0.25) < 1e-12)
    assert.ok((line?.r2 ?? 0) > 1 - 1e-12)
  })

  test('says how much of the variance is left: R² is 0 where x explains nothing', () => {
    const line = fitLine([
      { x: 0, y: 1 },
      { x: 1, y: 3 },
      { x: 2, y: 1 },
    ])
    assert.ok(Math.abs(line?.r2 ?? 1) < 1e-12)
    assert.equal(fitLine([0, 1].map((x) => ({ x, y: 5 })))?.r2, 1)
  })

  test('has none for one place', () => {
    assert.equal(fitLine([]), undefined)
    assert.equal(fitLine([1, 2].map((y) => ({ x: 4, y }))), undefined)
  })
})

test('median is the middle, or the mean of the two middle ones', () => {
  assert.equal(median([9, 1, 5]), 5)
  assert.equal(median([9, 1, 5, 7]), 6)
  assert.equal(median([]), Number.NaN)
})

test('ticks are round and reach the largest value', () => {
  assert.deepEqual(ticks(37), [0, 10, 20, 30, 40])
  assert.deepEqual(ticks(4096), [0, 1000, 2000, 3000, 4000, 5000])
  assert.deepEqual(ticks(0.3, 3), [0, 0.1, 0.2, 0.30000000000000004])
  assert.deepEqual(ticks(0), [0, 1])
})
