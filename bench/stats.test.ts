import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { linearFit, median, quantile } from './stats.js'

describe('bench statistics', () => {
  test('a line through exact points is found with R² = 1', () => {
    const fit = linearFit([1, 2, 5, 9].map((x) => ({ x, y: 3 * x - 2 })))
    assert.ok(Math.abs(fit.slope - 3) < 1e-12)
    assert.ok(Math.abs(fit.intercept + 2) < 1e-12)
    assert.ok(Math.abs(fit.r2 - 1) < 1e-12)
  })

  test('R² falls below 0.99 for a cost that is quadratic', () => {
    const { r2 } = linearFit([64, 128, 1024, 8192, 16_384].map((x) => ({ x, y: x * x })))
    assert.ok(r2 < 0.99, `R² ${r2}`)
  })

  test('quantiles are samples, at every rank', () => {
    const samples = [5, 1, 4, 2, 3]
    assert.equal(median(samples), 3)
    assert.deepEqual(
      [0, 0.2, 0.99, 1].map((q) => quantile(samples, q)),
      [1, 2, 5, 5],
    )
  })
})
