import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { setImmediate } from 'node:timers/promises'
import {
  copyBundle,
  exportModel,
  randomTokens,
  reseal,
  smallConfig,
} from '../../../test/fixtures.js'
import { collectGarbage } from '../../../test/gc.js'
import { openBundle } from '../../manifest.js'
import { createRandom } from '../../random.js'
import { sliceTokens } from '../../tokens.js'
import type { Engine, EngineEvent } from '../engine.js'
import { createCapiEngine } from './engine.js'
import { findLibrary } from './library.js'
import { loadOrt } from './ort.js'

const RUNS = 100_000
const ROUNDS = 5
const WARM_UP_RUNS = 20_000
const MIXED_STEPS = 4000
/**
 * Of one round. A leaked OrtValue per run would add 6 MB to each, a leaked array or promise 2 MB;
 * malloc and V8 take and give back tens of MB, but not in every round.
 */
const NATIVE_MARGIN_BYTES = 2 ** 20
const HEAP_MARGIN_BYTES = 4 * 2 ** 20

const ort = loadOrt(findLibrary())
const config = smallConfig({ layers: 1, heads: 1, dModel: 4, dqk: 2, dv: 2, headHidden: 2 })

describe('engine capi: leaks', () => {
  const model = exportModel({ after }, { config })
  const { history, candidates, queryTime } = randomTokens(model, createRandom(41), {
    events: 6,
    candidates: 2,
  })
  const open = (onEvent?: (event: EngineEvent) => void) =>
    createCapiEngine({
      bundle: model.bundle,
      workers: 2,
      ...(onEvent === undefined ? {} : { onEvent }),
    })

  test(`holds as much after ${RUNS} scores as before`, async (t) => {
    const engine = await open()
    t.after(() => engine.close())
    const handle = await engine.prefill(history)
    const scores = async (count: number) => {
      let left = count
      const call = async () => {
        while (left-- > 0) await engine.score(handle, candidates, queryTime)
      }
      await Promise.all([call(), call(), call(), call()])
    }
    await scores(WARM_UP_RUNS)
    const before = measure()
    const native = [before.native]
    let now = before
    for (let round = 0; round < ROUNDS; round++) {
      await scores(RUNS / ROUNDS)
      now = measure()
      native.push(now.native)
    }
    assert.equal(now.live, before.live)
    assert.ok(now.heap - before.heap < HEAP_MARGIN_BYTES, `${before.heap} to ${now.heap} bytes`)
    const least = Math.min(...native.slice(1).map((bytes, i) => bytes - (native[i] ?? 0)))
    assert.ok(least < NATIVE_MARGIN_BYTES, `after each round ${native} bytes`)
  })

  test('holds nothing after runs that end well, fail and are aborted, in any mix', async (t) => {
    const engine = await open()
    t.after(() => engine.close())
    // What stands for no history is made once.
    await engine.warmUp({ historyTokens: [0], candidates: [1] })
    const before = ort.live()
    const seed = 42
    const random = createRandom(seed)
    const ends = new Map<string, number>()
    const count = (end: string) => ends.set(end, (ends.get(end) ?? 0) + 1)
    const step = async () => {
      const split = Math.floor(random() * (history.length + 1))
      const controller = new AbortController()
      const { signal } = controller
      const past = await engine.prefill(sliceTokens(history, 0, split))
      const rest = sliceTokens(history, split, history.length)
      const wrong = new Int32Array(model.bundle.manifest.embedding.slots).fill(2 ** 30)
      const jobs: Promise<unknown>[] = [
        engine
          .prefill(rest, { handle: past, tokens: split }, signal)
          .then((handle) => engine.release(handle)),
        engine.score(past, random() < 0.3 ? wrong : candidates, queryTime, signal),
        engine.rank([{ history, candidates, queryTime }], signal),
      ]
      if (random() < 0.5) engine.release(past)
      // At every stage: at once, a few turns later, while they run, after the last.
      const turns = Math.floor(random() * 12)
      const aborting = (async () => {
        for (let i = 0; i < turns; i++) await setImmediate()
        controller.abort()
      })()
      for (const { status, ...outcome } of await Promise.allSettled(jobs)) {
        const isAbort = 'reason' in outcome && outcome.reason === signal.reason
        count(isAbort ? 'aborted' : status)
      }
      await aborting
      engine.release(past)
    }
    let left = MIXED_STEPS
    const call = async () => {
      while (left-- > 0) await step()
    }
    await Promise.all([call(), call(), call()])
    await drained(engine)
    for (const end of ['aborted', 'fulfilled', 'rejected']) {
      assert.ok((ends.get(end) ?? 0) > 100, `seed ${seed}: ${end} ${ends.get(end)} times`)
    }
    assert.equal(ort.live(), before)
  })

  test('leaves nothing of 20 engines, handles that nobody released included', async () => {
    const before = ort.live()
    for (let i = 0; i < 20; i++) {
      const engine = await open()
      const handles = await Promise.all([engine.prefill(history), engine.prefill(history)])
      for (const handle of handles) await engine.score(handle, candidates, queryTime)
      await engine.close()
      assert.equal(ort.live(), before, `engine ${i}`)
    }
    // The finalisers of closed engines' handles must not free once more.
    collectGarbage()
    await setImmediate()
    assert.equal(ort.live(), before)
  })

  test('leaves nothing of an engine that does not start, at whatever graph', async (t) => {
    const before = ort.live()
    for (const graph of ['prefill', 'score', 'rank']) {
      const changes: ((folder: string) => void)[] = [
        (folder) => writeFileSync(`${folder}/${graph}.onnx`, 'no graph'),
        (folder) => writeFileSync(`${folder}/${graph}.onnx`, ''),
        (folder) =>
          reseal(folder, (manifest) => {
            manifest.graphs[graph].inputs[0].type = 'int64'
          }),
      ]
      for (const change of changes) {
        const folder = copyBundle(t, model.bundle)
        change(folder)
        reseal(folder)
        const bundle = openBundle(folder)
        await assert.rejects(createCapiEngine({ bundle }), { code: 'MODEL_CONTRACT' })
        assert.equal(ort.live(), before, graph)
      }
    }
  })

  test('releases a handle that was dropped, and says that it leaked', async (t) => {
    const events: EngineEvent[] = []
    const engine = await open((event) => events.push(event))
    t.after(() => engine.close())
    const before = ort.live()
    const kept = await engine.prefill(history)
    await dropHandle(engine)
    assert.ok(ort.live() > before + 1)
    engine.release(kept)
    for (let i = 0; i < 50 && events.length === 0; i++) {
      collectGarbage()
      await setImmediate()
    }
    assert.deepEqual(events, [{ kind: 'leakedHandle', tokens: history.length }])
    assert.equal(ort.live(), before)
  })

  /** Its own function, so that no frame still refers to the handle. */
  async function dropHandle(engine: Engine): Promise<void> {
    await engine.score(await engine.prefill(history), candidates, queryTime)
  }
})

/** What is held without V8's heap, which grows and shrinks as it likes, and what of that is in use. */
function measure() {
  collectGarbage()
  const { rss, heapTotal, heapUsed } = process.memoryUsage()
  return { live: ort.live(), heap: heapUsed, native: rss - heapTotal }
}

/** Aborted runs hold their slot a little longer than their promise. */
async function drained(engine: Engine): Promise<void> {
  while (engine.stats().pendingJobs > 0) await setImmediate()
}
