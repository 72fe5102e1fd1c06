import assert from 'node:assert/strict'
import { existsSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import type { Worker } from 'node:worker_threads'
import { engineSuite } from '../../../test/engine-suite.js'
import { copyBundle, exportModel, randomTokens, reseal } from '../../../test/fixtures.js'
import { hostileGraphs } from '../../../test/hostile-graphs.js'
import { type Bundle, openBundle } from '../../manifest.js'
import { createRandom } from '../../random.js'
import type { EngineEvent } from '../engine.js'
import { createNodeEngine, type NodeEngineOptions } from './pool.js'

const OPTIONS: Omit<NodeEngineOptions, 'bundle'> = {
  workers: 2,
  threadsPerWorker: 1,
  provider: 'cpu',
  deviceId: 0,
  cudaFallback: false,
}

const create = (bundle: Bundle) => createNodeEngine({ ...OPTIONS, bundle })
engineSuite('node', create)
hostileGraphs('node', create)

describe('createNodeEngine: crashes', () => {
  const model = exportModel({ after })
  const { history, candidates, queryTime } = randomTokens(model, createRandom(21), {
    events: 6,
    candidates: 3,
  })

  /** An engine whose events can be waited for. */
  const openWatched = async (bundle: Bundle, workers: number) => {
    const seen: EngineEvent[] = []
    const waiting = new Map<string, (event: EngineEvent) => void>()
    const next = (kind: EngineEvent['kind']) =>
      new Promise<EngineEvent>((resolve) => {
        waiting.set(kind, resolve)
      })
    const onEvent = (event: EngineEvent) => {
      seen.push(event)
      waiting.get(event.kind)?.(event)
    }
    const engine = await createNodeEngine({ ...OPTIONS, bundle, workers, onEvent })
    return { engine, seen, next }
  }

  test('rejects the jobs of a dead worker with WORKER_CRASHED, drops its handles, replaces it', async () => {
    const { engine, seen, next } = await openWatched(model.bundle, 2)
    const handles = await Promise.all([engine.prefill(history), engine.prefill(history)])
    const expected = await Promise.all(handles.map((h) => engine.score(h, candidates, queryTime)))
    const restarted = next('restarted')
    const victim = engine.threads()[0]
    // Between two runs, never inside one: that would abort the process.
    const ended = victim?.terminate()
    const jobs = handles.map((handle) => engine.score(handle, candidates, queryTime))
    const outcomes = await Promise.allSettled(jobs)
    await ended
    const dead = outcomes.findIndex(({ status }) => status === 'rejected')
    assert.deepEqual(
      outcomes.map(({ status }) => status).sort(),
      ['fulfilled', 'rejected'],
      'the two handles lie on different workers',
    )
    const outcome = outcomes[dead]
    assert.ok(outcome?.status === 'rejected')
    assert.equal(outcome.reason.code, 'WORKER_CRASHED')
    for (const [i, handle] of handles.entries()) assert.equal(engine.isAlive(handle), i !== dead)
    const [lost] = handles.filter((_, i) => i === dead)
    assert.ok(lost)
    await assert.rejects(engine.score(lost, candidates, queryTime), { code: 'WORKER_CRASHED' })
    engine.release(lost)

    await restarted
    assert.deepEqual(
      seen.map(({ kind }) => kind),
      ['crash', 'restarted'],
    )
    assert.deepEqual(engine.stats(), { workers: 2, pendingJobs: 0, restarts: 1 })
    assert.equal(engine.isAlive(lost), false, 'a replacement does not revive handles')
    const again = await Promise.all([engine.prefill(history), engine.prefill(history)])
    for (const handle of again) {
      assert.deepEqual(await engine.score(handle, candidates, queryTime), expected[0])
    }
    await engine.close()
  })

  test('warms a replacement up before it takes jobs', async () => {
    const { engine, next } = await openWatched(model.bundle, 1)
    await engine.warmUp({ historyTokens: [8], candidates: [2] })
    const restarted = next('restarted')
    await engine.threads()[0]?.terminate()
    await assert.rejects(async () => engine.prefill(history), { code: 'WORKER_CRASHED' })
    await restarted
    assert.equal(engine.stats().workers, 1)
    await engine.prefill(history)
    await engine.close()
  })

  test('keeps trying a worker that cannot start, says so, and serves again once it can', async (t) => {
    const folder = copyBundle(t, model.bundle)
    const { engine, seen, next } = await openWatched(openBundle(folder), 1)
    const failed = next('notRestarted')
    renameSync(`${folder}/prefill.onnx`, `${folder}/away.onnx`)
    await engine.threads()[0]?.terminate()
    const event = await failed
    assert.ok(event.kind === 'notRestarted' && /prefill\.onnx does not load/.test(event.error))
    assert.equal(engine.stats().workers, 0)
    await assert.rejects(async () => engine.prefill(history), { code: 'WORKER_CRASHED' })
    await assert.rejects(async () => engine.rank([{ history, candidates, queryTime }]), {
      code: 'WORKER_CRASHED',
    })
    const restarted = next('restarted')
    renameSync(`${folder}/away.onnx`, `${folder}/prefill.onnx`)
    await restarted
    await engine.prefill(history)
    assert.deepEqual(
      [...new Set(seen.map(({ kind }) => kind))],
      ['crash', 'notRestarted', 'restarted'],
    )
    await engine.close()
  })

  test('close() does not wait for the next try of a worker that cannot start', async (t) => {
    const folder = copyBundle(t, model.bundle)
    const { engine, next } = await openWatched(openBundle(folder), 1)
    const failed = next('notRestarted')
    rmSync(`${folder}/prefill.onnx`)
    await engine.threads()[0]?.terminate()
    await failed
    await engine.close()
  })

  test('tries again, once, when a replacement dies while it warms up', async (t) => {
    const { engine, next } = await openWatched(model.bundle, 1)
    await engine.warmUp({ historyTokens: [], candidates: [] })
    const workers: Worker[] = []
    const killFirst = (worker: Worker) => {
      if (workers.push(worker) > 1) return
      worker.once('message', () => void worker.terminate())
    }
    process.on('worker', killFirst)
    t.after(() => process.off('worker', killFirst))
    const restarted = next('restarted')
    await engine.threads()[0]?.terminate()
    await restarted
    assert.deepEqual(await engine.prefill(history).then(({ tokens }) => tokens), history.length)
    await engine.close()
    assert.equal(engine.stats().restarts, 1)
    assert.deepEqual(
      workers.map(({ threadId }) => threadId),
      [-1, -1],
    )
  })

  test('leaves no worker behind when closed while a replacement starts', async (t) => {
    const workers: Worker[] = []
    const collect = (worker: Worker) => workers.push(worker)
    process.on('worker', collect)
    t.after(() => process.off('worker', collect))
    const { engine, next } = await openWatched(model.bundle, 1)
    const crashed = next('crash')
    void engine.threads()[0]?.terminate()
    await crashed
    await engine.close()
    assert.equal(workers.length, 2)
    assert.deepEqual(
      workers.map(({ threadId }) => threadId),
      [-1, -1],
      'threads that have ended',
    )
  })
})

describe('createNodeEngine: providers', () => {
  const model = exportModel({ after })
  const hasGpu = existsSync('/dev/nvidia0')
  const skip = hasGpu && 'this machine has a GPU'

  test('says ENGINE_UNAVAILABLE, and what it would need, without CUDA', { skip }, async () => {
    const cuda = createNodeEngine({ ...OPTIONS, bundle: model.bundle, provider: 'cuda' })
    await assert.rejects(cuda, {
      code: 'ENGINE_UNAVAILABLE',
      message:
        /CUDA provider does not start on device 0: .+expected onnxruntime-node with its CUDA/s,
    })
  })

  test('runs on the CPU where that was asked for, with a warning', { skip }, async () => {
    const events: EngineEvent[] = []
    const engine = await createNodeEngine({
      ...OPTIONS,
      bundle: model.bundle,
      workers: 1,
      provider: 'cuda',
      cudaFallback: true,
      onEvent: (event) => events.push(event),
    })
    assert.equal(engine.name, 'node/cpu')
    const [event] = events
    assert.ok(event?.kind === 'provider' && /CUDA provider does not start/.test(event.warning))
    const { history, candidates, queryTime } = randomTokens(model, createRandom(1), {
      events: 2,
      candidates: 2,
    })
    await engine.rank([{ history, candidates, queryTime }])
    await engine.close()
  })

  test('does not take a broken graph for missing CUDA', { skip }, async (t) => {
    const folder = copyBundle(t, model.bundle)
    writeFileSync(`${folder}/prefill.onnx`, 'no graph')
    reseal(folder)
    const engine = createNodeEngine({ ...OPTIONS, bundle: openBundle(folder), workers: 1 })
    await assert.rejects(engine, { code: 'MODEL_CONTRACT' })
  })
})
