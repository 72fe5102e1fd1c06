import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { chooseBatchLimit } from './batch-limit.js'

describe('chooseBatchLimit', () => {
  const choose = (ms: Readonly<Record<number, number>>) =>
    chooseBatchLimit(async (limit) => ms[limit] ?? Number.NaN)

  test('doubles the limit as long as a burst gets a tenth faster', async () => {
    assert.equal(await choose({ 1: 100, 2: 95, 4: 10, 8: 10, 16: 10 }), 1)
    assert.equal(await choose({ 1: 100, 2: 60, 4: 58, 8: 10, 16: 10 }), 2)
    assert.equal(await choose({ 1: 100, 2: 60, 4: 40, 8: 30, 16: 20 }), 16)
    assert.equal(await choose({ 1: 100, 2: 200, 4: 1, 8: 1, 16: 1 }), 1)
  })

  test('takes the fastest of several bursts', async () => {
    let calls = 0
    const limit = await chooseBatchLimit(async (each) => {
      calls++
      return calls % 3 === 1 ? 1000 : 100 / each
    })
    assert.equal(limit, 16)
  })
})
