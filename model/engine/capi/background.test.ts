import assert from 'node:assert/strict'
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { copyBundle, exportModel, randomTokens, reseal } from '../../../test/fixtures.js'
import { until } from '../../../test/redis.js'
import { openBundleInBackground } from '../../check-bundle.js'
import { checkUnchanged, openBundle } from '../../manifest.js'
import { createRandom } from '../../random.js'
import { createCapiEngine } from './engine.js'
import { findLibrary } from './library.js'
import { loadOrt } from './ort.js'

const ENGINES = 5
const ort = loadOrt(findLibrary())

/** How many threads of this process have the lowest priority. */
function lowestThreads(): number {
  return readdirSync('/proc/self/task').filter((id) => {
    const stat = readFileSync(`/proc/self/task/${id}/stat`, 'utf8')
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[16] === '19'
  }).length
}

/** The kernel forgets a thread a moment after Node has. */
function noLowestThread(): Promise<void> {
  return until('the thread to be gone', () => lowestThreads() === 0)
}

describe('an engine that starts in the background', () => {
  const model = exportModel({ after })
  const { bundle } = model
  const { history, candidates, queryTime } = randomTokens(model, createRandom(5), {
    events: 9,
    candidates: 6,
  })

  test('gives what any other gives, on the lowest thread and later on the usual ones, and leaves nothing', async (t) => {
    const usual = await createCapiEngine({ bundle })
    t.after(() => usual.close())
    const handle = await usual.prefill(history)
    const expected = await usual.score(handle, candidates, queryTime)
    const live = ort.live()
    for (let i = 0; i < ENGINES; i++) {
      const engine = await createCapiEngine({ bundle, background: true })
      assert.equal(lowestThreads(), 1)
      const started = engine.background?.spentMs() ?? 0
      assert.ok(started > 0, 'sessions are made there')
      const own = await engine.prefill(history)
      assert.deepEqual(await engine.score(own, candidates, queryTime), expected)
      const spent = engine.background?.spentMs() ?? 0
      assert.ok(spent > started)
      await engine.background?.end()
      await engine.background?.end()
      await noLowestThread()
      assert.deepEqual(await engine.score(own, candidates, queryTime), expected)
      assert.equal(engine.background?.spentMs(), spent, 'it is over')
      await engine.close()
      assert.equal(ort.live(), live, `engine ${i}`)
    }
  })

  test('may have threads of its own, which are not the lowest', async () => {
    const engine = await createCapiEngine({
      bundle,
      background: true,
      workers: 2,
      threadsPerWorker: 2,
    })
    const own = await engine.prefill(history)
    await engine.score(own, candidates, queryTime)
    const lowest = lowestThreads()
    await engine.close()
    assert.equal(lowest, 1)
    await noLowestThread()
  })

  test('leaves nothing where a graph does not load', async (t) => {
    const live = ort.live()
    const folder = copyBundle(t, bundle)
    writeFileSync(`${folder}/score.onnx`, 'no graph')
    reseal(folder)
    await assert.rejects(createCapiEngine({ bundle: openBundle(folder), background: true }), {
      code: 'MODEL_CONTRACT',
    })
    assert.equal(ort.live(), live)
    assert.equal(lowestThreads(), 0)
  })
})

describe('openBundleInBackground', () => {
  const { bundle } = exportModel({ after })

  test('opens what openBundle opens, and refuses what it refuses', async (t) => {
    const { manifest } = await openBundleInBackground(bundle.folder)
    assert.deepEqual(manifest, bundle.manifest)
    const folder = copyBundle(t, bundle)
    writeFileSync(`${folder}/weights.bin`, 'short')
    await assert.rejects(openBundleInBackground(folder), {
      code: 'BUNDLE_INVALID',
      message: /weights\.bin must have \d+ bytes, got 5$/,
    })
    await assert.rejects(openBundleInBackground(`${folder}/nowhere`), { code: 'BUNDLE_INVALID' })
  })

  test('has every file looked at before one of them is hashed', async (t) => {
    const folder = copyBundle(t, bundle)
    rmSync(`${folder}/score.onnx`)
    writeFileSync(
      `${folder}/weights.bin`,
      Buffer.alloc(bundle.manifest.files['weights.bin']?.bytes ?? 0),
    )
    await assert.rejects(openBundleInBackground(folder), { message: /score\.onnx is missing$/ })
  })
})

describe('checkUnchanged', () => {
  const { bundle } = exportModel({ after })

  test('refuses a bundle in whose place another one lies by now', (t) => {
    const folder = copyBundle(t, bundle)
    const opened = openBundle(folder)
    checkUnchanged(opened)
    reseal(folder, (manifest) => {
      manifest.producer = 'another'
    })
    assert.throws(() => checkUnchanged(opened), {
      code: 'BUNDLE_INVALID',
      message: /was version \w+ and became \w+ while it was loaded$/,
    })
  })
})
