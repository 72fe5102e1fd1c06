import assert from 'node:assert/strict'
import { cpSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { tempFolder } from '../../test/fixtures.js'
import {
  exportVersions,
  idOf,
  putBundle,
  requestFor,
  type ServedModels,
  serveModels,
  versionOf,
} from '../../test/models.js'
import { until } from '../../test/redis.js'

const [one, two, three] = exportVersions({ after })
const NAME = one.bundle.manifest.name
type Model = typeof one

async function modelOf({ send }: ServedModels, model?: string): Promise<string | number> {
  const { body } = requestFor(one, 'u')
  const res = await send('POST', '/v1/rank', model === undefined ? body : { ...body, model })
  return res.status === 200 ? res.body.model : res.status
}

/** Looks until it is so. */
async function lookUntil(served: ServedModels, isSo: () => boolean): Promise<void> {
  await until('the models to follow', async () => {
    await served.watched.look()
    return isSo()
  })
}

function stateOf({ models }: ServedModels) {
  return Object.fromEntries(models.versions().map((v) => [v.version, v.state]))
}

const isReady = (served: ServedModels, model: Model) =>
  stateOf(served)[versionOf(model)] === 'ready'
const isGone = (served: ServedModels, model: Model) =>
  stateOf(served)[versionOf(model)] === undefined

/** Serves these from the beginning. */
async function serveFolder(t: { after(clean: () => void): void }, ...all: [string, Model][]) {
  const folder = `${tempFolder(t)}/models`
  mkdirSync(folder)
  for (const [name, model] of all) putBundle(model, `${folder}/${name}`)
  const served = await serveModels(t, {}, folder)
  await served.watched.open()
  return served
}

describe('a folder of models', () => {
  test('is served as it is found, and a bundle that appears is served beside it', async (t) => {
    const served = await serveFolder(t, ['a', one])
    assert.equal(await modelOf(served), idOf(one))
    putBundle(two, `${served.modelsDir}/b`)
    await lookUntil(served, () => isReady(served, two))
    assert.equal(await modelOf(served), idOf(one), 'not promoted by itself')
    assert.equal(await modelOf(served, idOf(two)), idOf(two))
    rmSync(`${served.modelsDir}/b`, { recursive: true })
    await lookUntil(served, () => isGone(served, two))
    assert.equal(await modelOf(served, idOf(two)), 404)
  })

  test('may be empty at first: then nothing is ready', async (t) => {
    const served = await serveFolder(t)
    assert.equal((await served.app.inject('/readyz')).statusCode, 503)
    assert.equal(await modelOf(served), 503)
    putBundle(one, `${served.modelsDir}/a`)
    await lookUntil(served, () => isReady(served, one))
    assert.equal((await served.app.inject('/readyz')).statusCode, 200)
    assert.equal(await modelOf(served), idOf(one))
  })

  test('leaves a bundle alone while it is being written, and what never was complete', async (t) => {
    const served = await serveFolder(t, ['a', one])
    const half = `${served.modelsDir}/b`
    cpSync(two.bundle.folder, half, { recursive: true })
    const weights = readFileSync(`${half}/weights.bin`)
    const manifest = readFileSync(`${half}/manifest.json`)
    rmSync(`${half}/manifest.json`)
    writeFileSync(`${half}/weights.bin`, '')
    for (let i = 0; i < 5; i++) await served.watched.look()
    // The manifest is there, and the weights still grow at each look.
    writeFileSync(`${half}/manifest.json`, manifest)
    for (let part = 1; part < 5; part++) {
      writeFileSync(`${half}/weights.bin`, weights.subarray(0, (part * weights.length) / 5))
      await served.watched.look()
    }
    for (const name of ['.hidden', 'c.tmp-x1']) {
      cpSync(three.bundle.folder, `${served.modelsDir}/${name}`, { recursive: true })
    }
    writeFileSync(`${half}/weights.bin`, weights)
    await served.watched.look()
    assert.deepEqual(Object.keys(stateOf(served)), [versionOf(one)])
    await lookUntil(served, () => isReady(served, two))
    assert.ok(isGone(served, three))
    assert.deepEqual(
      served.events.filter(({ kind }) => kind === 'modelFailed'),
      [],
    )
  })

  test('a broken bundle says why, and is tried again when it changes', async (t) => {
    const served = await serveFolder(t, ['a', one])
    putBundle(two, `${served.modelsDir}/b`)
    writeFileSync(`${served.modelsDir}/b/weights.bin`, 'short')
    mkdirSync(`${served.modelsDir}/c`)
    writeFileSync(`${served.modelsDir}/c/manifest.json`, '{}')
    await lookUntil(served, () => stateOf(served)[versionOf(two)] === 'failed')
    const { body } = await served.admin('GET')
    assert.match(body.models[0].versions[1].reason, /weights\.bin must have/)
    assert.match(body.unreadable[0].reason, /must have a name and a version/)
    assert.equal(await modelOf(served), idOf(one))
    cpSync(`${two.bundle.folder}/weights.bin`, `${served.modelsDir}/b/weights.bin`)
    await lookUntil(served, () => isReady(served, two))
    rmSync(`${served.modelsDir}/c`, { recursive: true })
    await lookUntil(served, () => served.models.unreadable().length === 0)
  })

  test('another bundle in the place of one takes over its labels, and the former goes', async (t) => {
    const served = await serveFolder(t, ['a', one])
    const place = `${served.modelsDir}/a`
    renameSync(place, `${served.modelsDir}/.former`)
    putBundle(two, place)
    await lookUntil(served, () => isReady(served, two) && isGone(served, one))
    assert.equal(await modelOf(served), idOf(two))
    putBundle(three, `${served.modelsDir}/.three`)
    writeFileSync(`${served.modelsDir}/.three/weights.bin`, 'broken')
    rmSync(place, { recursive: true })
    renameSync(`${served.modelsDir}/.three`, place)
    await lookUntil(served, () => stateOf(served)[versionOf(three)] === 'failed')
    for (let i = 0; i < 3; i++) await served.watched.look()
    assert.equal(await modelOf(served), idOf(two), 'the old one serves on')
  })

  test('going back to a version that is still on its way out loads it again when that is gone', async (t) => {
    const served = await serveFolder(t, ['a', one])
    const place = `${served.modelsDir}/a`
    const put = (model: Model) => {
      renameSync(place, `${served.modelsDir}/.former-${versionOf(model)}`)
      putBundle(model, place)
    }
    const lease = served.models.lease(undefined, 'u')
    put(two)
    await lookUntil(served, () => stateOf(served)[versionOf(one)] === 'draining')
    put(one)
    for (let i = 0; i < 5; i++) await served.watched.look()
    assert.equal(stateOf(served)[versionOf(one)], 'draining')
    assert.equal(await modelOf(served), idOf(two))
    lease.done()
    await lookUntil(served, () => isReady(served, one) && isGone(served, two))
    assert.equal(await modelOf(served), idOf(one))
  })

  test('what comes into the folder while it waits for a version to go is what it gets', async (t) => {
    const served = await serveFolder(t, ['a', one], ['b', three])
    const place = `${served.modelsDir}/a`
    const lease = served.models.lease(undefined, 'u')
    for (const model of [two, one]) {
      rmSync(place, { recursive: true })
      putBundle(model, place)
      await lookUntil(served, () => isReady(served, two))
      for (let i = 0; i < 5; i++) await served.watched.look()
    }
    assert.equal(stateOf(served)[versionOf(one)], 'draining')
    rmSync(place, { recursive: true })
    for (let i = 0; i < 5; i++) await served.watched.look()
    lease.done()
    await lookUntil(served, () => isGone(served, one))
    for (let i = 0; i < 5; i++) await served.watched.look()
    assert.ok(isGone(served, one))
    assert.deepEqual(served.models.unreadable(), [])
  })

  test('the default model’s stable version outlives its folder until another is promoted', async (t) => {
    const served = await serveFolder(t, ['a', one])
    rmSync(`${served.modelsDir}/a`, { recursive: true })
    await lookUntil(served, () => served.events.some(({ kind }) => kind === 'modelOrphaned'))
    assert.equal(await modelOf(served), idOf(one))
    putBundle(two, `${served.modelsDir}/b`)
    await lookUntil(served, () => isReady(served, two))
    await served.admin('POST', `/${NAME}/promote`, { version: versionOf(two) })
    await lookUntil(served, () => isGone(served, one))
    assert.equal(await modelOf(served), idOf(two))
  })

  test('a folder that is renamed stays loaded', async (t) => {
    const served = await serveFolder(t, ['a', one], ['b', two])
    renameSync(`${served.modelsDir}/b`, `${served.modelsDir}/c`)
    for (let i = 0; i < 5; i++) await served.watched.look()
    assert.ok(isReady(served, two))
    const { body } = await served.admin('GET', `/${NAME}`)
    assert.equal(body.versions[1].bundle, `${served.modelsDir}/c`)
    rmSync(`${served.modelsDir}/c`, { recursive: true })
    await lookUntil(served, () => isGone(served, two))
  })

  test('that cannot be read costs no model', async (t) => {
    const served = await serveFolder(t, ['a', one])
    renameSync(served.modelsDir, `${served.modelsDir}-away`)
    for (let i = 0; i < 5; i++) await served.watched.look()
    assert.equal(served.faults.length, 1)
    assert.match(served.faults[0] ?? '', /ENOENT/)
    assert.equal(await modelOf(served), idOf(one))
    renameSync(`${served.modelsDir}-away`, served.modelsDir)
    for (let i = 0; i < 5; i++) await served.watched.look()
    assert.ok(isReady(served, one))
  })
})

describe('the labels file', () => {
  test('brings back labels after a restart, and other processes follow it', async (t) => {
    const first = await serveFolder(t, ['a', one], ['b', two], ['c', three])
    await first.admin('POST', `/${NAME}/promote`, { version: versionOf(two) })
    await first.admin('PUT', `/${NAME}/canary`, { version: versionOf(three), weightPercent: 0 })
    assert.equal(await modelOf(first), idOf(two))

    const second = await serveModels(t, {}, first.modelsDir)
    await second.watched.open()
    assert.equal(await modelOf(second), idOf(two))
    assert.equal(await modelOf(second, `${NAME}@canary`), idOf(three))
    assert.deepEqual(
      second.events.map(({ kind }) => kind)[1],
      'modelReady',
      'stable first, by no promotion',
    )

    await first.admin('DELETE', `/${NAME}/canary`)
    await first.admin('POST', `/${NAME}/rollback`)
    await second.watched.look()
    assert.equal(await modelOf(second), idOf(one))
    assert.equal(await modelOf(second, `${NAME}@canary`), 404)
    assert.deepEqual(second.faults, [])
  })

  test('that makes no sense is a fault and changes nothing', async (t) => {
    const served = await serveFolder(t, ['a', one], ['b', two])
    for (const text of ['{', '{"x": 5}', `{"${NAME}": {"stable": 7}}`]) {
      writeFileSync(`${served.modelsDir}/labels.json`, text)
      await served.watched.look()
      await served.watched.look()
    }
    assert.equal(served.faults.length, 3)
    assert.equal(await modelOf(served), idOf(one))
    const unknown = { [NAME]: { stable: '0'.repeat(16) }, other: { stable: versionOf(two) } }
    writeFileSync(`${served.modelsDir}/labels.json`, JSON.stringify(unknown))
    await served.watched.look()
    assert.equal(await modelOf(served), idOf(one))
  })
})
