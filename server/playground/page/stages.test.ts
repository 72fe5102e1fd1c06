import assert from 'node:assert/strict'
import { test } from 'node:test'
import { planMicroBatches } from '../../../falcon/plan.js'
import { microBatchSizes, stagesOf } from './stages.js'

test('stages follow each other from 0 to the whole', () => {
  const stages = stagesOf({
    parseMs: 1,
    sequenceMs: 1,
    historyMs: 4,
    scoreMs: 2,
    headsMs: 0,
    totalMs: 7,
  })
  assert.deepEqual(
    stages.map(({ name, from, to }) => [name, from, to]),
    [
      ['parse', 0, 0.125],
      ['sequence', 0.125, 0.25],
      ['history', 0.25, 0.75],
      ['score', 0.75, 1],
      ['heads', 1, 1],
    ],
  )
})

test('stages of a request that took no time are empty, not NaN', () => {
  const none = { parseMs: 0, sequenceMs: 0, historyMs: 0, scoreMs: 0, headsMs: 0, totalMs: 0 }
  assert.ok(stagesOf(none).every(({ from, to }) => from === 0 && to === 0))
})

test('micro-batches are drawn as the ranker plans them', () => {
  for (const [m, b] of [
    [9, 4],
    [100, 512],
    [4096, 256],
    [1, 1],
  ] as const) {
    const plan = planMicroBatches(m, b)
    assert.deepEqual(
      microBatchSizes(m, plan.length),
      plan.map(({ start, end }) => end - start),
    )
  }
  assert.deepEqual(microBatchSizes(0, 0), [])
})
