import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createRandom } from '../model/random.js'
import { linearFit, median, quantile, slopeOf } from './stats.js'

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

  test('a slope is in its interval, which is wide where what follows is alike', () => {
    const random = createRandom(1)
    let drift = 0
    const alone = Array.from({ length: 400 }, (_, x) => ({ x, y: 2 * x + random() - 0.5 }))
    const alike = alone.map(({ x }) => {
      drift = 0.98 * drift + random() - 0.5
      return { x, y: 2 * x + drift }
    })
    const [narrow, wide] = [slopeOf(alone), slopeOf(alike)]
    for (const { slope, plusMinus } of [narrow, wide]) {
      assert.ok(Math.abs(slope - 2) <= plusMinus, `${slope} ± ${plusMinus}`)
    }
    assert.ok(wide.plusMinus > 5 * narrow.plusMinus)
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
