// Whole models through the CPU's kernels: against the float64 oracle, and what must not depend on how
// a request is cut.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { largestDifference, verifyBundle } from '../falcon/verify.js'
import { createEngine } from '../model/engine/create.js'
import type { EngineEvent } from '../model/engine/engine.js'
import { createRandom } from '../model/random.js'
import { sliceTokens } from '../model/tokens.js'
import { TOLERANCE } from '../model/vectors.js'
import {
  BLOCK_FLAGS,
  exportModel,
  type ModelFixture,
  pickRows,
  randomTokens,
  type Scope,
  smallConfig,
  tempFolder,
} from './fixtures.js'
import { buildKernels, builtKernels } from './kernel-library.js'

const { folder, skip } = builtKernels()

async function openWithKernels(
  scope: Scope,
  { bundle }: Pick<ModelFixture, 'bundle'>,
  onEvent: (event: EngineEvent) => void = () => {},
) {
  const options = { workers: 2, threadsPerWorker: 1, kernels: folder, onEvent }
  const engine = await createEngine({ bundle, engine: 'capi', ...options })
  scope.after(() => engine.close())
  assert.equal(engine.stats().kernels?.arithmetic, 'bf16')
  return engine
}

describe('models through the AMX kernels', { skip }, () => {
  test('every block flag, both ways, agrees with the oracle on every route', async (t) => {
    // The public variants' own combination and its opposite, each with one flag turned over.
    const names = Object.entries(BLOCK_FLAGS)
    const blocks = [0, 1].flatMap((side) =>
      [undefined, ...names.keys()].map((turned) =>
        Object.fromEntries(
          names.map(([name, both], i) => [name, both[i === turned ? 1 - side : side]]),
        ),
      ),
    )
    for (const [i, block] of blocks.entries()) {
      const model = exportModel(t, { config: smallConfig({ block }), seed: 40 + i })
      const engine = await openWithKernels(t, model)
      const random = createRandom(i)
      const users = [20, 3].map((events) =>
        randomTokens(model, random, { events, candidates: 5, series: 2 }),
      )
      const ranked = await engine.rank(users)
      for (const [u, { history, candidates, queryTime }] of users.entries()) {
        const expected = model.reference(history, candidates, queryTime).logits
        const handle = await engine.prefill(history)
        const scored = await engine.score(handle, candidates, queryTime)
        engine.release(handle)
        for (const got of [scored, ranked[u] ?? []]) {
          const difference = largestDifference(got, expected)
          assert.ok(difference <= TOLERANCE.bf16, `${difference} at ${JSON.stringify(block)}`)
        }
      }
    }
  })

  for (const [kv, heads] of [
    ['rows', { dqk: 40, dv: 24 }],
    ['tiles', { dqk: 32, dv: 64 }],
  ] as const)
    test(`no score depends on the micro-batch, the cache, an append or other users, bit for bit: K/V as ${kv}`, async (t) => {
      const model = exportModel(t, { config: smallConfig({ maxTokens: 700, ...heads }) })
      const engine = await openWithKernels(t, model)
      const { slots } = model.bundle.manifest.embedding
      const random = createRandom(3)
      const user = randomTokens(model, random, { events: 330, candidates: 70, series: 4 })
      const other = randomTokens(model, random, { events: 12, candidates: 9, series: 1 })
      const { history, candidates, queryTime } = user
      const whole = await engine.prefill(history)
      const scores = await engine.score(whole, candidates, queryTime)
      const tasks = scores.length / 70

      for (const b of [1, 16, 33]) {
        for (let start = 0; start < 70; start += b) {
          const end = Math.min(70, start + b)
          const rows = pickRows(
            candidates,
            slots,
            [...Array(end - start).keys()].map((i) => start + i),
          )
          const part = await engine.score(whole, rows, queryTime)
          assert.deepEqual(part, scores.slice(start * tasks, end * tasks), `b = ${b} from ${start}`)
        }
      }
      for (const split of [1, 255, 256, 500, history.length - 2]) {
        const past = await engine.prefill(sliceTokens(history, 0, split))
        const rest = sliceTokens(history, split, history.length)
        const appended = await engine.prefill(rest, { handle: past, tokens: split })
        assert.deepEqual(
          await engine.score(appended, candidates, queryTime),
          scores,
          `split ${split}`,
        )
        engine.release(past)
        engine.release(appended)
      }
      const [ranked] = await engine.rank([user, other])
      assert.deepEqual(ranked, scores)
      const together = await Promise.all(
        Array.from({ length: 8 }, () => engine.score(whole, candidates, queryTime)),
      )
      for (const each of together) assert.deepEqual(each, scores)
      engine.release(whole)
    })

  test('the test vectors of a bundle pass with the tolerance of bf16', async (t) => {
    const model = exportModel(t)
    const engine = await openWithKernels(t, model)
    const { maxDifference, tolerance } = await verifyBundle(engine, model.bundle)
    assert.equal(tolerance, TOLERANCE.bf16)
    // More than float32 would show: the kernels really ran.
    assert.ok(maxDifference > 1e-5, String(maxDifference))
  })

  test('a library that fits is told, and a float16 bundle has none on the CPU', async (t) => {
    const events: EngineEvent[] = []
    await openWithKernels(t, exportModel(t), (event) => events.push(event))
    const library = `${folder}/libperegrine_kernels_cpu.so`
    const told = events.find(({ kind }) => kind === 'kernels')
    const says = { arithmetic: 'bf16', kv: 'bf16', kvTiles: true }
    assert.deepEqual(told, { kind: 'kernels', library, ...says })
    const { bundle } = exportModel(t, { precision: 'fp16' })
    const engine = await createEngine({ bundle, engine: 'capi', kernels: folder, workers: 1 })
    t.after(() => engine.close())
    assert.equal(engine.stats().kernels, undefined)
  })

  test('the same sources give the same bytes', (t) => {
    const again = tempFolder(t)
    buildKernels(again)
    const name = 'libperegrine_kernels_cpu.so'
    assert.ok(readFileSync(`${again}/${name}`).equals(readFileSync(`${folder}/${name}`)))
  })
})
