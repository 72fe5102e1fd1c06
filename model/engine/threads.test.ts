import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { chooseThreads, poolThreadsOf } from './threads.js'

const given = [0, 1, 2, 3, 5, 16]

describe('chooseThreads', () => {
  test('never has more threads than cores where it chooses one of the two, on any machine', () => {
    for (const kind of ['capi', 'node'] as const) {
      for (let cores = 1; cores <= 40; cores++) {
        for (let poolThreads = 1; poolThreads <= 20; poolThreads++) {
          for (const workers of given) {
            for (const threadsPerWorker of given) {
              const machine = { cores, poolThreads }
              const got = chooseThreads(kind, 'cpu', workers, threadsPerWorker, machine)
              const what = JSON.stringify({ kind, ...machine, workers, threadsPerWorker, got })
              assert.ok(got.workers >= 1 && got.threadsPerWorker >= 1, what)
              if (threadsPerWorker > 0) assert.equal(got.threadsPerWorker, threadsPerWorker, what)
              if (kind === 'node' && workers > 0) assert.equal(got.workers, workers, what)
              if (kind === 'capi') assert.ok(got.workers <= Math.max(1, poolThreads - 1), what)
              const isChosen =
                (workers <= cores && threadsPerWorker === 0) ||
                (workers === 0 && threadsPerWorker <= cores)
              if (isChosen) assert.ok(got.workers * got.threadsPerWorker <= cores, what)
            }
          }
        }
      }
    }
  })

  test('gives node a worker per core, and capi what the pool leaves, with the other cores as threads', () => {
    const machine = { cores: 16, poolThreads: 4 }
    assert.deepEqual(chooseThreads('node', 'cpu', 0, 0, machine), {
      workers: 16,
      threadsPerWorker: 1,
    })
    assert.deepEqual(chooseThreads('capi', 'cpu', 0, 0, machine), {
      workers: 3,
      threadsPerWorker: 5,
    })
    assert.deepEqual(chooseThreads('capi', 'cpu', 0, 0, { cores: 16, poolThreads: 17 }), {
      workers: 16,
      threadsPerWorker: 1,
    })
  })

  test('keeps four runs of capi on a GPU, and one worker of node', () => {
    const machine = { cores: 16, poolThreads: 4 }
    assert.deepEqual(chooseThreads('capi', 'cuda', 0, 0, machine), {
      workers: 4,
      threadsPerWorker: 1,
    })
    assert.deepEqual(chooseThreads('node', 'cuda', 0, 0, machine), {
      workers: 1,
      threadsPerWorker: 1,
    })
    assert.deepEqual(chooseThreads('capi', 'cuda', 2, 3, machine), {
      workers: 2,
      threadsPerWorker: 3,
    })
  })

  test('reads the size of the pool as libuv does', () => {
    for (const [text, threads] of [
      [undefined, 4],
      ['', 1],
      ['0', 1],
      ['much', 1],
      ['8', 8],
      ['9999', 1024],
    ] as const) {
      assert.equal(poolThreadsOf(text), threads, String(text))
    }
  })
})
