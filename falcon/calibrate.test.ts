import assert from 'node:assert/strict'
import { after, describe, test } from 'node:test'
import { createNodeEngine } from '../model/engine/node/pool.js'
import { createRandom } from '../model/random.js'
import { exportModel } from '../test/fixtures.js'
import { calibrate, randomHistory, smallestGood } from './calibrate.js'

const points = (costs: { readonly [size: number]: number }) =>
  Object.entries(costs).map(([size, ms]) => ({ microBatchSize: Number(size), ms }))

describe('smallestGood', () => {
  test('is the smallest size within 5 % of the best cost per candidate', () => {
    assert.equal(smallestGood(points({ 16: 16, 32: 32, 64: 64 })), 16)
    assert.equal(smallestGood(points({ 16: 32, 32: 32, 64: 32 })), 64)
    assert.equal(smallestGood(points({ 16: 16.8, 32: 32, 64: 64 })), 16)
    assert.equal(smallestGood(points({ 16: 16.9, 32: 33.5, 64: 64 })), 32)
    assert.equal(smallestGood(points({ 16: 100, 32: 10, 64: 200 })), 32)
    assert.equal(smallestGood(points({ 16: 1000 })), 16)
  })
})

describe('calibrate', () => {
  const model = exportModel({ after })

  test('measures sizes from 16 on and leaves no K/V behind', async (t) => {
    const engine = await createNodeEngine({ bundle: model.bundle })
    t.after(() => engine.close())
    let live = 0
    const { microBatchSize, points: measured } = await calibrate(
      {
        ...engine,
        prefill: (...args) => {
          live++
          return engine.prefill(...args)
        },
        release: (handle) => {
          live--
          engine.release(handle)
        },
      },
      model.bundle.manifest,
    )
    assert.equal(live, 0)
    assert.equal(measured[0]?.microBatchSize, 16)
    assert.ok(measured.every(({ ms }) => ms > 0 && Number.isFinite(ms)))
    assert.equal(microBatchSize, smallestGood(measured))
  })

  test('releases its K/V when a run fails', async () => {
    let live = 0
    const broken = {
      prefill: async () => {
        live++
        return { tokens: 66, bytes: 1, device: 'test' }
      },
      score: () => Promise.reject(new Error('no')),
      release: () => {
        live--
      },
    }
    const never = () => Promise.reject(new Error('not asked for'))
    const engine = {
      ...broken,
      name: 'broken',
      rank: never,
      exportKv: never,
      importKv: never,
      isAlive: () => true,
      warmUp: never,
      stats: () => ({ workers: 1, pendingJobs: 0, restarts: 0 }),
      close: async () => {},
    }
    await assert.rejects(calibrate(engine, model.bundle.manifest), /no/)
    assert.equal(live, 0)
  })

  test('takes random tokens within the tables and masks', () => {
    const { manifest } = model.bundle
    const history = randomHistory(manifest, 500, createRandom(1))
    assert.equal(history.length, 500)
    assert.ok(history.rows.every((row) => row >= 0 && row < manifest.embedding.rows))
    assert.ok(history.actions.every((mask) => mask >= 0 && mask < 2 ** 6))
  })
})
