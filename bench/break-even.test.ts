import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { breakEven } from './break-even.js'

describe('breakEven', () => {
  test('finds where two power laws meet, between any of their points', () => {
    // fetch = 4·x^0.5, compute = 0.5·x: equal at x = 64.
    const at = (x: number) => ({ x, fetch: 4 * x ** 0.5, compute: 0.5 * x })
    const found = breakEven([16, 512, 32, 128].map(at))
    assert.ok(found !== undefined)
    assert.ok(Math.abs(found.x - 64) < 1e-9, `${found.x}`)
    assert.ok(Math.abs(found.y - 32) < 1e-9, `${found.y}`)
  })

  test('is undefined where one is cheaper at every point, or there is only one', () => {
    const points = [1, 2, 3].map((x) => ({ x, fetch: x, compute: 2 * x }))
    assert.equal(breakEven(points), undefined)
    assert.equal(breakEven(points.slice(0, 1)), undefined)
  })

  test('takes the last of several crossings', () => {
    const compute = [1, 3, 1, 3]
    const found = breakEven(compute.map((cost, i) => ({ x: 2 ** i, fetch: 2, compute: cost })))
    assert.ok(found !== undefined && found.x > 4 && found.x < 8, `${found?.x}`)
  })
})
