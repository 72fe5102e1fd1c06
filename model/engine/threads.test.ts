import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { chooseThreads } from './threads.js'

const given = [0, 1, 2, 3, 5, 16]

describe('chooseThreads', () => {
  test('never has more threads than cores where it chooses one of the two, on any machine', () => {
    for (const kind of ['capi', 'node'] as const) {
      for (let cores = 1; cores <= 40; cores++) {
        for (const workers of given) {
          for (const threadsPerWorker of given) {
            const got = chooseThreads(kind, 'cpu', workers, threadsPerWorker, cores)
            const what = JSON.stringify({ kind, cores, workers, threadsPerWorker, got })
            assert.ok(got.workers >= 1 && got.threadsPerWorker >= 1, what)
            if (threadsPerWorker > 0) assert.equal(got.threadsPerWorker, threadsPerWorker, what)
            if (workers > 0) assert.equal(got.workers, workers, what)
            if (kind === 'capi' && workers === 0) assert.ok(got.workers <= 3, what)
            const isChosen =
              (workers <= cores && threadsPerWorker === 0) ||
              (workers === 0 && threadsPerWorker <= cores)
            if (isChosen) assert.ok(got.workers * got.threadsPerWorker <= cores, what)
          }
        }
      }
    }
  })

  test('gives node a worker per core, and capi three runs, with the other cores as threads', () => {
    assert.deepEqual(chooseThreads('node', 'cpu', 0, 0, 16), {
      workers: 16,
      threadsPerWorker: 1,
    })
    assert.deepEqual(chooseThreads('capi', 'cpu', 0, 0, 16), {
      workers: 3,
      threadsPerWorker: 5,
    })
    assert.deepEqual(chooseThreads('capi', 'cpu', 16, 0, 16), {
      workers: 16,
      threadsPerWorker: 1,
    })
  })

  test('keeps four runs of capi on a GPU, and one worker of node', () => {
    assert.deepEqual(chooseThreads('capi', 'cuda', 0, 0, 16), {
      workers: 4,
      threadsPerWorker: 1,
    })
    assert.deepEqual(chooseThreads('node', 'cuda', 0, 0, 16), {
      workers: 1,
      threadsPerWorker: 1,
    })
    assert.deepEqual(chooseThreads('capi', 'cuda', 2, 3, 16), {
      workers: 2,
      threadsPerWorker: 3,
    })
  })
})
