import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { after, before, describe, test } from 'node:test'
import { setImmediate } from 'node:timers/promises'
import { exportModel, randomTokens, smallConfig } from '../../../test/fixtures.js'
import { createRandom } from '../../random.js'
import { sliceTokens } from '../../tokens.js'
import type { Engine } from '../engine.js'
import { createCapiEngine } from './engine.js'
import { findLibrary } from './library.js'
import { loadOrt } from './ort.js'

const TOKENS = 1024
/** Turns of the event loop before an abort: the first aborts come before the run, the last in it. */
const TURNS = [0, 1, 2, 5, 20, 100, 400]

describe('engine capi: cancellation', () => {
  const ort = loadOrt(findLibrary())
  // The paper's width: a prefill takes some 100 ms, thousands of turns of the event loop.
  const config = smallConfig({ dModel: 512, heads: 8, dqk: 64, dv: 64, maxTokens: TOKENS })
  const model = exportModel(
    { after },
    // Nobody looks at the test vectors.
    { config, oracle: (_, rows) => ({ logits: new Float64Array(rows.length) }) },
  )
  const { history, candidates, queryTime } = randomTokens(model, createRandom(51), {
    events: TOKENS / 2,
    candidates: 4,
  })
  const short = sliceTokens(history, 0, 40)
  let engine: Engine
  before(async () => {
    engine = await createCapiEngine({ bundle: model.bundle, workers: 1 })
  })
  after(() => engine.close())
  const turns = async (count: number) => {
    for (let i = 0; i < count; i++) await setImmediate()
  }

  test('stops a prefill in the middle, at once for the caller, and gives the slot to the next', async () => {
    const kept = await engine.prefill(short)
    const expected = await engine.exportKv(kept)
    const scores = await engine.score(kept, candidates, queryTime)
    const live = ort.live()
    for (const count of TURNS) {
      const controller = new AbortController()
      const order: string[] = []
      const past = { handle: kept, tokens: short.length }
      const rest = sliceTokens(history, short.length, history.length)
      const jobs = [
        engine.prefill(rest, past, controller.signal),
        engine.prefill(rest, past).then((handle) => {
          order.push('next')
          engine.release(handle)
        }),
      ]
      const reason = new Error(`after ${count} turns`)
      const aborted = assert.rejects(jobs[0] ?? Promise.resolve(), reason).then(() => {
        order.push('aborted')
      })
      await turns(count)
      controller.abort(reason)
      await aborted
      assert.deepEqual(order, ['aborted'], 'before the next had time to run')
      await Promise.all(jobs.slice(1))
      // What was appended to is untouched.
      assert.deepEqual(await engine.exportKv(kept), expected)
      assert.deepEqual(await engine.score(kept, candidates, queryTime), scores)
      assert.equal(engine.stats().pendingJobs, 0)
      assert.equal(ort.live(), live)
    }
    engine.release(kept)
  })

  test('gives the same after an aborted append in place as without it', async () => {
    const rest = sliceTokens(history, short.length, 60)
    const whole = await engine.prefill(sliceTokens(history, 0, 60))
    const expected = await engine.score(whole, candidates, queryTime)
    const past = await engine.prefill(short)
    for (const count of TURNS.slice(0, 5)) {
      const controller = new AbortController()
      const append = engine.prefill(rest, { handle: past, tokens: 40 }, controller.signal)
      const settled = Promise.allSettled([append])
      await turns(count)
      controller.abort()
      const [outcome] = await settled
      if (outcome?.status === 'fulfilled') engine.release(outcome.value)
    }
    const again = await engine.prefill(rest, { handle: past, tokens: 40 })
    const got = await engine.score(again, candidates, queryTime)
    got.forEach((logit, i) => {
      assert.ok(Math.abs(logit - (expected[i] ?? Number.NaN)) < 1e-3)
    })
    for (const handle of [whole, past, again]) engine.release(handle)
  })

  test('stops a one-pass run and a score too', async () => {
    const handle = await engine.prefill(history)
    await engine.score(handle, candidates, queryTime)
    const live = ort.live()
    const many = new Int32Array(2000 * model.bundle.manifest.embedding.slots)
    const runs = [
      (signal: AbortSignal) => engine.rank([{ history, candidates, queryTime }], signal),
      (signal: AbortSignal) => {
        const user = { history, candidates, queryTime }
        return engine.rank([user, user], signal)
      },
      (signal: AbortSignal) => engine.score(handle, many, queryTime, signal),
    ]
    for (const run of runs) {
      const controller = new AbortController()
      const aborted = assert.rejects(run(controller.signal), { name: 'AbortError' })
      await turns(20)
      controller.abort()
      await aborted
      // Runs only once the slot is free again.
      await engine.score(handle, candidates, queryTime)
      assert.equal(engine.stats().pendingJobs, 0)
      assert.equal(ort.live(), live)
    }
    engine.release(handle)
  })

  test('ends the process with its own exit code in the middle of a run', () => {
    const url = (path: string) => JSON.stringify(new URL(path, import.meta.url).href)
    const script = `
      import { createCapiEngine } from ${url('./engine.js')}
      import { openBundle } from ${url('../../manifest.js')}
      import { zeroTokens } from ${url('../../tokens.js')}
      const bundle = openBundle(process.argv[1])
      const engine = await createCapiEngine({ bundle, workers: 2 })
      const tokens = zeroTokens(${TOKENS}, bundle.manifest.embedding.slots)
      for (let i = 0; i < 4; i++) void engine.prefill(tokens)
      for (let i = 0; i < 50; i++) await new Promise((resolve) => setImmediate(resolve))
      if (engine.stats().pendingJobs !== 4) throw new Error('ended too early')
      process.exit(7)`
    for (let i = 0; i < 3; i++) {
      const { status, signal, stderr } = spawnSync(
        process.execPath,
        ['--input-type=module', '-e', script, model.bundle.folder],
        { encoding: 'utf8' },
      )
      assert.deepEqual({ status, signal, stderr }, { status: 7, signal: null, stderr: '' })
    }
  })
})
