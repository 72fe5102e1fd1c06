import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { KernelsResult, PeerTimes } from './kernels-cpu.js'
import { describeMachine } from './machine.js'
import { kernelsPage } from './report-kernels.js'

const peer = (times: Partial<PeerTimes>): PeerTimes => ({
  ...{ encodeMs: 80, wholeMs: { 256: 20, 1024: 100 }, scoreMs: { 64: 120, 256: 90 } },
  ...{ opMs: {}, peakTflops: 2, ...times },
})

const RESULT: KernelsResult = {
  library: '/kernels/library.so',
  threads: 2,
  ops: [],
  calls: ['score, m = 256, from K/V', 'score, m = 1,024, from K/V', 'prefill, n = 2,048'].map(
    (what, i) => ({ what, kernelsMs: 10 * (i + 1), float32KvMs: 40, functionsMs: 100 }),
  ),
  kvBytes: { kernels: 1e6, float32Kv: 2e6, functions: 2e6 },
  logits: { difference: 1e-3, largest: 2 },
  peers: [
    { torch: '2', fp32: peer({}), bf16: peer({ encodeMs: 60 }) },
    { torch: '2', fp32: peer({}), bf16: peer({ scoreMs: { 64: 120, 256: 40 } }) },
  ],
}

describe('kernelsPage', () => {
  test("every call that PyTorch was measured in stands beside PyTorch's best", () => {
    const lines = kernelsPage(describeMachine(), RESULT).split('\n')
    const row = (what: string) =>
      lines
        .find((line) => line.startsWith(`| ${what}`))
        ?.split('|')
        .slice(2, -1)
        .map(Number)
    // Kernels, over float32 K/V, functions, PyTorch bf16 and float32, kernels / functions, kernels / PyTorch bf16.
    assert.deepEqual(row('score, m = 256'), [10, 40, 100, 20, 20, 0.1, 0.5])
    assert.deepEqual(row('score, m = 1,024'), [20, 40, 100, 40, 90, 0.2, 0.5])
    assert.deepEqual(row('prefill'), [30, 40, 100, 60, 80, 0.3, 0.5])
  })
})
