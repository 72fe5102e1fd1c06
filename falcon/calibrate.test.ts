import assert from 'node:assert/strict'
import { after, describe, test } from 'node:test'
import { createCosts } from '../cache/costs.js'
import { createNodeEngine } from '../model/engine/node/pool.js'
import { createRandom } from '../model/random.js'
import { countHandles } from '../test/engines.js'
import { exportModel, smallConfig } from '../test/fixtures.js'
import { calibrate, measureCosts, randomHistory, smallestGood } from './calibrate.js'

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

const model = exportModel({ after })

describe('calibrate', () => {
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
      kvPrecision: 'fp32' as const,
      rank: never,
      encode: never,
      retrieve: never,
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

describe('measureCosts', () => {
  test('measures lengths that a cost model can be fitted to, for every longest history', async (t) => {
    for (const maxTokens of [2, 3, 4, 5, 9, 66]) {
      const { bundle } = exportModel(t, { config: smallConfig({ maxTokens }) })
      const engine = countHandles(await createNodeEngine({ bundle }))
      t.after(() => engine.close())
      const { calibration, longest } = await measureCosts(engine, bundle.manifest, 5)
      assert.equal(engine.live(), 0)
      assert.equal(longest, undefined, 'a CPU’s is predicted')
      const { prefill, score, rank } = calibration
      for (const { ms } of [...prefill, ...score, ...rank]) assert.ok(ms > 0 && Number.isFinite(ms))
      for (const { newTokens, pastTokens } of prefill) {
        assert.ok(newTokens >= 1 && pastTokens >= 0 && newTokens + pastTokens <= maxTokens)
      }
      for (const { candidates, tokens } of [...score, ...rank]) {
        assert.ok([1, 5].includes(candidates) && tokens >= 1 && tokens <= maxTokens)
      }
      const costs = createCosts(calibration, { kv: 'auto', maxTokens })
      assert.ok(costs.prefillMs(maxTokens, 0) > 0 && costs.scoreMs(5, maxTokens) > 0)
    }
  })

  test('measures one pass over the longest history too where the engine is on a GPU', async (t) => {
    const engine = await createNodeEngine({ bundle: model.bundle })
    t.after(() => engine.close())
    const gpu = { ...engine, name: 'node/cuda' }
    const { calibration, longest } = await measureCosts(gpu, model.bundle.manifest, 300)
    assert.ok(calibration.rank.some(({ tokens, ms }) => tokens === 66 && ms === longest?.rankMs))
    assert.equal(calibration.score[0]?.candidates, 300)
    assert.equal(longest?.prefillMs, calibration.prefill[0]?.ms)
  })

  test('releases its K/V when a run fails', async (t) => {
    const engine = countHandles(await createNodeEngine({ bundle: model.bundle }))
    t.after(() => engine.close())
    for (const part of ['score', 'rank'] as const) {
      const broken = { ...engine, [part]: () => Promise.reject(new Error('no')) }
      await assert.rejects(measureCosts(broken, model.bundle.manifest, 5), /no/)
      assert.equal(engine.live(), 0)
    }
  })
})
