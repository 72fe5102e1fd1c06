import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { parseConfig } from '../model/config.js'
import { createNodeEngine } from '../model/engine/node/pool.js'
import { type Bundle, openBundle } from '../model/manifest.js'
import { copyBundle, exportModel, type Json, reseal, smallConfig } from '../test/fixtures.js'
import { SMALL_RESEARCH } from '../test/small-checkpoints.js'
import { type LoadEvent, type LoadOptions, loadRanker } from './load.js'
import { largestDifference, verifyBundle } from './verify.js'

const LOAD: Omit<LoadOptions, 'bundle'> = {
  provider: 'cpu',
  deviceId: 0,
  cudaFallback: false,
  workers: 1,
  threadsPerWorker: 1,
  microBatchSize: 4,
  maxKvBytes: 1e6,
}

describe('largestDifference', () => {
  test('is the largest absolute one, and infinite for other lengths and for what is no number', () => {
    assert.equal(largestDifference([], []), 0)
    assert.equal(largestDifference([1, 2, 3], [1, 2.5, 2]), 1)
    assert.equal(largestDifference([1], [1, 2]), Infinity)
    assert.equal(largestDifference([1, 2], [1]), Infinity)
    for (const bad of [Number.NaN, Infinity, -Infinity]) {
      assert.equal(largestDifference([0, bad], [0, 0]), Infinity)
      assert.equal(largestDifference([0, 0], [0, bad]), Infinity)
    }
  })
})

describe('verifyBundle', () => {
  const model = exportModel({ after })
  const verify = async (bundle: Bundle) => {
    const engine = await createNodeEngine({ ...LOAD, bundle })
    try {
      return await verifyBundle(engine, bundle)
    } finally {
      await engine.close()
    }
  }
  /** A bundle whose first logit of the last case is another. */
  const withLogit = (t: { after(clean: () => void): void }, change: (logit: number) => number) => {
    const folder = copyBundle(t, model.bundle)
    const file = `${folder}/vectors/vectors.json`
    const vectors: Json = JSON.parse(readFileSync(file, 'utf8'))
    const row = vectors.at(-1).logits[0]
    row[0] = change(row[0])
    writeFileSync(file, JSON.stringify(vectors))
    reseal(folder)
    return folder
  }

  test('passes what the exporter wrote, in both precisions', async (t) => {
    for (const { bundle } of [model, exportModel(t, { precision: 'fp16' })]) {
      const { cases, maxDifference, tolerance } = await verify(bundle)
      assert.equal(cases, 6)
      assert.ok(maxDifference > 0 && maxDifference <= tolerance)
    }
  })

  test('passes a model without context, whose shortest vector has no token at all', async (t) => {
    await verify(exportModel(t, { config: smallConfig({ context: [] }) }).bundle)
  })

  test('refuses a vector that is off by twice the tolerance, with the difference', async (t) => {
    const folder = withLogit(t, (logit) => logit + 2e-4)
    await assert.rejects(verify(openBundle(folder)), {
      code: 'MODEL_CONTRACT',
      message: /logits differ by 2\.0\de-4 from the test vectors, expected at most 0\.0001/,
    })
  })

  test('refuses vectors of another number of tasks', async (t) => {
    const folder = copyBundle(t, model.bundle)
    const file = `${folder}/vectors/vectors.json`
    const vectors: Json = JSON.parse(readFileSync(file, 'utf8'))
    vectors[0].logits[0].pop()
    writeFileSync(file, JSON.stringify(vectors))
    reseal(folder)
    await assert.rejects(verify(openBundle(folder)), { code: 'MODEL_CONTRACT' })
  })

  test('refuses other weights under the same vectors', async (t) => {
    const folder = copyBundle(t, model.bundle)
    const bytes = readFileSync(`${folder}/weights.bin`)
    // The sign of every 50th float: still finite numbers.
    for (let at = 3; at < bytes.length; at += 200) bytes[at] = (bytes[at] ?? 0) ^ 0x80
    writeFileSync(`${folder}/weights.bin`, bytes)
    reseal(folder)
    await assert.rejects(verify(openBundle(folder)), { code: 'MODEL_CONTRACT' })
  })

  test('refuses a candidate list whose rows or norms are others', async (t) => {
    const research = exportModel(t, { config: parseConfig(SMALL_RESEARCH) })
    assert.ok((await verify(research.bundle)).maxDifference <= 1e-4)
    const items = SMALL_RESEARCH.items
    // The two last tensors of the file: (items) rows, (items) norms; the first is aligned to 64 bytes.
    const norms = (view: DataView, at: number) =>
      view.setFloat32(at, 1.1 * view.getFloat32(at, true), true)
    const rows = (view: DataView, at: number) => view.setInt32(at, 3, true)
    for (const [change, fromEnd] of [
      [norms, 4 * items],
      [rows, 4 * items + 192],
    ] as const) {
      const folder = copyBundle(t, research.bundle)
      const bytes = readFileSync(`${folder}/weights.bin`)
      const view = new DataView(bytes.buffer, bytes.byteOffset + bytes.length - fromEnd)
      for (let i = 0; i < items; i++) change(view, 4 * i)
      writeFileSync(`${folder}/weights.bin`, bytes)
      reseal(folder)
      await assert.rejects(verify(openBundle(folder)), { code: 'MODEL_CONTRACT' })
    }
  })

  describe('loadRanker', () => {
    test('says what it did: engine, vectors, micro-batch size; then serves', async () => {
      const events: LoadEvent[] = []
      const onEvent = (event: LoadEvent) => events.push(event)
      const options = { ...LOAD, bundle: model.bundle.folder, microBatchSize: 0, onEvent }
      const ranker = await loadRanker(options)
      assert.deepEqual(
        events.map(({ kind }) => kind),
        ['engine', 'verified', 'calibrated', 'policy'],
      )
      const threads = { workers: 1, threadsPerWorker: 1 }
      assert.deepEqual(events[0], { kind: 'engine', name: 'capi/cpu', ...threads })
      assert.equal(ranker.model.version, model.bundle.manifest.version)
      assert.equal(ranker.model.engine, 'capi/cpu')
      assert.ok(ranker.model.microBatchSize >= 16)
      assert.deepEqual(ranker.stats().cache, {
        entries: 0,
        kvBytes: 0,
        maxKvBytes: 1e6,
        evictions: 0,
      })
      await ranker.close()
      assert.equal(ranker.stats().engine.workers, 0)
    })

    test('keeps K/V where it is told to, and says what it would cost', async () => {
      for (const kv of ['always', 'never'] as const) {
        const policies: LoadEvent[] = []
        const ranker = await loadRanker({
          ...LOAD,
          bundle: model.bundle.folder,
          kv,
          onEvent: (event) => {
            if (event.kind === 'policy') policies.push(event)
          },
        })
        const [policy] = policies
        assert.ok(policy?.kind === 'policy' && policies.length === 1)
        const { prefillMs, scoreMs, rankMs } = policy
        assert.equal(policy.kv, kv)
        for (const ms of [prefillMs, scoreMs, rankMs]) assert.ok(ms > 0 && Number.isFinite(ms))
        const history = [{ item: '1', time: 5, actions: [] }]
        const input = { user: { id: 'u' }, histories: [history], series: {}, time: 9 }
        const { kv: use } = await ranker.rank({ ...input, candidates: [{ item: '2' }] }, {})
        assert.equal(use.decision, kv === 'always' ? 'recompute' : 'onePass')
        assert.ok((use.predictedMs ?? 0) > 0)
        assert.equal(ranker.stats().cache.entries, kv === 'always' ? 1 : 0)
        assert.ok((ranker.stats().costs?.prefillTokensPerSec ?? 0) > 0)
        await ranker.close()
      }
    })

    test('runs the engine that is asked for', async () => {
      for (const engine of ['capi', 'node'] as const) {
        const ranker = await loadRanker({ ...LOAD, engine, bundle: model.bundle.folder })
        assert.equal(ranker.model.engine, `${engine}/cpu`)
        await ranker.close()
      }
    })

    test('refuses a wrong vector at start-up and leaves no worker behind', async (t) => {
      const bundle = withLogit(t, (logit) => logit + 1)
      const threads: { readonly threadId: number }[] = []
      const collect = (worker: { readonly threadId: number }) => threads.push(worker)
      process.on('worker', collect)
      t.after(() => process.off('worker', collect))
      await assert.rejects(loadRanker({ ...LOAD, engine: 'node', bundle }), {
        code: 'MODEL_CONTRACT',
      })
      assert.deepEqual(
        threads.map(({ threadId }) => threadId),
        [-1],
      )
    })
  })
})
