import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { planMicroBatches } from './plan.js'

describe('planMicroBatches', () => {
  test('covers every candidate once, in order, balanced, for all m <= 64 and b <= 16', () => {
    for (let m = 0; m <= 64; m++) {
      for (let b = 1; b <= 16; b++) {
        const plan = planMicroBatches(m, b)
        const covered = plan.flatMap(({ start, end }) =>
          Array.from({ length: end - start }, (_, i) => start + i),
        )
        assert.deepEqual(covered, [...Array(m).keys()], `m=${m} b=${b}`)
        assert.equal(plan.length, Math.ceil(m / b), `m=${m} b=${b}`)
        const sizes = plan.map(({ start, end }) => end - start)
        assert.ok(Math.max(0, ...sizes) <= b, `m=${m} b=${b}`)
        assert.ok(m === 0 || Math.max(...sizes) - Math.min(...sizes) <= 1, `m=${m} b=${b}`)
      }
    }
  })

  test('rejects b = 0 and a broken m with INVALID_REQUEST', () => {
    assert.throws(() => planMicroBatches(1, 0), { code: 'INVALID_REQUEST' })
    assert.throws(() => planMicroBatches(Number.NaN, 1), { code: 'INVALID_REQUEST' })
    assert.throws(() => planMicroBatches(-1, 1), { code: 'INVALID_REQUEST' })
  })
})
