import assert from 'node:assert/strict'
import { test } from 'node:test'
import { WITH_KERNELS } from './latency.js'
import { kernelSection } from './report-kernels.js'
import { OURS, type Peer } from './result.js'

const at = (ms: number) => ({ ms, p10: ms, p90: ms })
const engine = (name: string, ms: number) => ({
  engine: name,
  prefill: at(3 * ms),
  points: [
    {
      m: 1024,
      ...{ score: at(ms), scoreSame: at(ms), rank: at(2 * ms) },
      ...{ scorePerSecond: 1000, rankPerSecond: 500, batchedRankPerSecond: 1 },
    },
  ],
  batches: [],
})
const peer: Peer = {
  machine: { torch: '2', triton: '3' },
  ceilings: {},
  results: [
    { shape: 'paper', what: 'rank', m: 1024, batch: 1, mode: 'graph', route: 'plain', ioMs: 4 },
  ],
}

test('a page without kernels has no part on them', () => {
  const latency = [{ shape: 'paper', model: 'x', engines: [engine(OURS, 4)] }]
  assert.deepEqual(kernelSection(latency, peer), [])
})

test('kernels stand beside the same engine without them, and beside Meta where it was measured', () => {
  const engines = [engine(OURS, 4), engine(WITH_KERNELS, 1)]
  const lines = kernelSection([{ shape: 'paper', model: 'x', engines }], peer)
  assert.ok(
    lines.includes('| paper | score on K/V | 1,024 | 4.00 | 1.00 | 0.250 | – | – | 1,000 |'),
  )
  assert.ok(
    lines.includes('| paper | one pass | 1,024 | 8.00 | 2.00 | 0.250 | 4.00 | 0.500 | 500 |'),
  )
  assert.ok(lines.includes('| paper | 12.0 | 3.00 |'))
})
