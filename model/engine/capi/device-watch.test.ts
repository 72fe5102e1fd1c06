import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createCountingEngine, plainTokens } from '../../../test/counting-engine.js'
import type { EngineEvent } from '../engine.js'
import { watchDevice } from './device-watch.js'

/** An engine whose jobs fail as asked, over a GPU that refuses every call once it is broken. */
function openWatched() {
  const engine = {
    ...createCountingEngine(),
    gpuMemory() {
      if (gpu.isBroken) throw new Error('CUDA: an illegal memory access was encountered')
      return { usedBytes: 3, totalBytes: 8 }
    },
  }
  const seen: EngineEvent[] = []
  const gpu = { isBroken: false, probes: 0 }
  const probe = () => {
    gpu.probes++
    if (gpu.isBroken) throw new Error('CUDA: an illegal memory access was encountered')
  }
  const watched = watchDevice(engine, probe, (event) => seen.push(event))
  const failing = (signal?: AbortSignal) => {
    engine.failNext(1)
    return watched.prefill(plainTokens(3), undefined, signal)
  }
  return { watched, failing, gpu, seen }
}

describe('watchDevice', () => {
  test('keeps the workers through an error that the GPU survives', async () => {
    const { watched, failing, gpu, seen } = openWatched()
    await watched.prefill(plainTokens(3))
    assert.equal(gpu.probes, 0, 'asked without a reason')
    await assert.rejects(failing(), { message: 'as asked' })
    assert.equal(gpu.probes, 1)
    assert.equal(watched.stats().workers, 1)
    assert.deepEqual(watched.gpuMemory?.(), { usedBytes: 3, totalBytes: 8 })
    assert.deepEqual(seen, [])
  })

  test('exports from where it was asked to', async () => {
    const asked: unknown[] = []
    const engine = createCountingEngine()
    const watched = watchDevice(
      {
        ...engine,
        exportKv: async (_, start) => {
          asked.push(start)
          return { tokens: 0, layers: [], times: new Float64Array(0) }
        },
      },
      () => {},
      () => {},
    )
    const handle = await watched.prefill(plainTokens(3))
    await watched.exportKv(handle, 2)
    assert.deepEqual(asked, [2])
  })

  test('has no worker and says so once when the GPU refuses every call: 503 from then on', async () => {
    const { watched, failing, gpu, seen } = openWatched()
    gpu.isBroken = true
    const refused = {
      code: 'WORKER_CRASHED',
      message: 'the GPU refuses every call: CUDA: an illegal memory access was encountered',
    }
    assert.equal(watched.gpuMemory?.(), undefined)
    for (let i = 0; i < 3; i++) await assert.rejects(failing(), refused)
    assert.equal(watched.gpuMemory?.(), undefined)
    assert.equal(watched.stats().workers, 0)
    assert.deepEqual(seen, [
      { kind: 'deviceLost', error: 'CUDA: an illegal memory access was encountered' },
    ])
  })

  test('does not take a job that was aborted for a fault', async () => {
    const { watched, failing, gpu } = openWatched()
    gpu.isBroken = true
    await assert.rejects(failing(AbortSignal.abort(new Error('left'))), { message: 'left' })
    assert.equal(gpu.probes, 0)
    assert.equal(watched.stats().workers, 1)
  })
})
