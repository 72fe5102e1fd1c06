import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { largestDifference } from '../../falcon/verify.js'
import { tokensOf } from '../../test/fixtures.js'
import {
  exportVersions,
  idOf,
  putBundle,
  requestFor,
  type ServedModels,
  type ServedOptions,
  serveModels,
  versionOf,
} from '../../test/models.js'

const versions = exportVersions({ after })
const [one, two, three] = versions
const NAME = one.bundle.manifest.name
const USERS = Array.from({ length: 40 }, (_, u) => `u${u}`)

type Answer = { model: string; items: { index: number; logits: number[] }[] }

/** That the scores of an answer are those of the version that it names, by the slow oracle. */
function checkAnswer({ model, items }: Answer, user: string): void {
  const version = versions.find((each) => idOf(each) === model)
  assert.ok(version !== undefined, model)
  const { history, candidates, queryTime } = tokensOf(
    requestFor(version, user).input,
    version.vocabulary,
  )
  const { logits } = version.reference(history, candidates, queryTime)
  const got = items.toSorted((a, b) => a.index - b.index).flatMap((item) => item.logits)
  assert.ok(largestDifference(got, logits) < 1e-4, `${model} for ${user}`)
}

async function rank({ send }: ServedModels, user: string, model?: string) {
  const { body } = requestFor(one, user)
  const res = await send('POST', '/v1/rank', model === undefined ? body : { ...body, model })
  if (res.status === 200) checkAnswer(res.body, user)
  return res
}

/** Serves the first two versions, the first of them stable. */
async function serveTwo(t: { after(clean: () => void): void }, options?: ServedOptions) {
  const served = await serveModels(t, options)
  for (const [name, model] of [
    ['a', one],
    ['b', two],
  ] as const) {
    putBundle(model, `${served.modelsDir}/${name}`)
    const { status } = await served.admin('POST', '', { bundle: name, wait: true })
    assert.equal(status, 200)
  }
  return served
}

describe('several versions of a model', () => {
  test('are asked for by name, version and label, and listed with their labels', async (t) => {
    const served = await serveTwo(t)
    const modelOf = async (asked?: string) => (await rank(served, 'u', asked)).body.model
    assert.equal(await modelOf(), idOf(one))
    assert.equal(await modelOf(NAME), idOf(one))
    assert.equal(await modelOf(`${NAME}@stable`), idOf(one))
    assert.equal(await modelOf(idOf(two)), idOf(two))
    for (const asked of [`${NAME}@canary`, `${NAME}@0000000000000000`, 'other', '', '@stable']) {
      const { status, body } = await rank(served, 'u', asked)
      assert.equal(status, asked === '' ? 400 : 404, asked)
      if (asked !== '') assert.equal(body.path, '/model')
    }
    const { body } = await served.send('GET', '/v1/models')
    assert.deepEqual(
      body.models.map((m: { version: string; state: string; labels: string[] }) => [
        ...[m.version, m.state, m.labels],
      ]),
      [
        [versionOf(one), 'ready', ['stable']],
        [versionOf(two), 'ready', []],
      ],
    )
    assert.equal((await served.app.inject('/readyz')).statusCode, 200)
  })

  test('load in the background from the second on, and the same shape is measured once', async (t) => {
    const served = await serveTwo(t)
    assert.equal(served.measurements.size, 1)
    assert.deepEqual(
      served.events.map(({ kind }) => kind),
      ['modelLoading', 'modelReady', 'modelLoading', 'modelReady'],
    )
  })

  test('change places under load without a failed or a wrong answer', async (t) => {
    const served = await serveTwo(t, { rampMs: 300 })
    const seen = new Map<string, number>()
    let isOver = false
    const caller = async (c: number) => {
      for (let i = c; !isOver; i++) {
        const { status, body } = await rank(served, USERS[i % USERS.length] ?? 'u')
        assert.equal(status, 200, JSON.stringify(body))
        seen.set(body.model, (seen.get(body.model) ?? 0) + 1)
      }
    }
    const callers = [0, 10, 20].map(caller)
    const moved = async (model: typeof one) => {
      while ((await rank(served, 'probe')).body.model !== idOf(model)) await turn()
    }
    try {
      for (const model of [two, one, two]) {
        const { status, body } = await served.admin('POST', `/${NAME}/promote`, {
          version: versionOf(model),
        })
        assert.equal(status, 200)
        assert.equal(body.stable, versionOf(model))
        await moved(model)
      }
      const { body } = await served.admin('POST', `/${NAME}/rollback`)
      assert.equal(body.stable, versionOf(one))
      assert.equal((await rank(served, 'probe')).body.model, idOf(one), 'at once')
      putBundle(three, `${served.modelsDir}/c`)
      await served.admin('POST', '', { bundle: 'c', wait: true })
      await served.admin('POST', `/${NAME}/promote`, { version: versionOf(three), rampSec: 0 })
      const gone = await served.admin('DELETE', `/${NAME}/versions/${versionOf(two)}?wait=true`)
      assert.equal(gone.status, 200)
    } finally {
      isOver = true
      await Promise.all(callers)
    }
    for (const model of [one, two]) assert.ok((seen.get(idOf(model)) ?? 0) > 0)
  })

  test('are unloaded when their last request has ended, and leave no metric behind', async (t) => {
    const served = await serveTwo(t)
    const second = served.models.versions()[1]
    const ranker = second?.ranker
    let answered = 0
    const under = USERS.map(async (user) => {
      const answer = await rank(served, user, idOf(two))
      answered++
      return answer
    })
    // Their bodies are read one by one: a name that is read after its version went is not found.
    while (answered + (second?.inFlight ?? 0) < USERS.length) await turn()
    const { status, body } = await served.admin('DELETE', `/${NAME}/versions/${versionOf(two)}`)
    assert.equal(status, 202)
    assert.ok(['draining', undefined].includes(body.versions[1]?.state))
    for (const answer of await Promise.all(under)) assert.equal(answer.status, 200)
    while (served.models.versions().length > 1) await turn()
    assert.equal(ranker?.stats().engine.workers, 0)
    assert.equal((await rank(served, 'u', idOf(two))).status, 404)
    assert.equal((await rank(served, 'u')).status, 200)
    const metrics = await served.metrics()
    assert.ok(metrics.includes(`model="${idOf(one)}"`))
    assert.ok(!metrics.includes(versionOf(two)), metrics)
  })

  test('share their users’ canary by weight, always the same users', async (t) => {
    const served = await serveTwo(t)
    const setCanary = (weightPercent: number) =>
      served.admin('PUT', `/${NAME}/canary`, { version: versionOf(two), weightPercent })
    assert.equal((await setCanary(30)).status, 200)
    const canaries = async () => {
      const answers = await Promise.all(USERS.map((user) => rank(served, user)))
      return USERS.filter((_, u) => answers[u]?.body.model === idOf(two))
    }
    const users = await canaries()
    assert.ok(users.length > 0 && users.length < USERS.length, String(users.length))
    assert.deepEqual(await canaries(), users)
    assert.equal((await rank(served, 'u', `${NAME}@canary`)).body.model, idOf(two))
    assert.equal((await rank(served, users[0] ?? '', `${NAME}@stable`)).body.model, idOf(one))
    await setCanary(100)
    assert.equal((await canaries()).length, USERS.length)
    const { body } = await served.admin('DELETE', `/${NAME}/canary`)
    assert.equal(body.canary, undefined)
    assert.deepEqual(await canaries(), [])
    const refused = await served.admin('PUT', `/${NAME}/canary`, {
      ...{ version: versionOf(one), weightPercent: 5 },
    })
    assert.equal(refused.status, 409, 'stable already')
  })

  test('rank in the shadow of each other, and measure how they differ', async (t) => {
    const served = await serveTwo(t)
    const shadow = { version: versionOf(two), sharePercent: 100 }
    assert.equal((await served.admin('PUT', `/${NAME}/shadow`, shadow)).status, 200)
    const { body } = await rank(served, 'u')
    assert.equal(body.model, idOf(one))
    const difference = `peregrine_shadow_difference_sum{model="${idOf(two)}",task="click"} `
    while (!(await served.metrics()).includes(difference)) await turn()
    const metrics = await served.metrics()
    assert.ok(metrics.includes(`rankings_total{model="${idOf(two)}",outcome="ranked"} 1`), metrics)
    const sum = Number(metrics.split(difference)[1]?.split('\n')[0])
    assert.ok(sum > 0 && sum < 1, String(sum))
    assert.ok(!metrics.includes(`peregrine_candidates_total{model="${idOf(two)}"}`), 'no live one')
    await served.admin('DELETE', `/${NAME}/shadow`)
    await rank(served, 'u')
    await served.admin('DELETE', `/${NAME}/versions/${versionOf(two)}?wait=true`)
    assert.ok(!(await served.metrics()).includes(versionOf(two)))
  })
})

describe('what is refused', () => {
  test('a bundle that does not verify is 422 with its reason, and the old one serves on', async (t) => {
    const served = await serveTwo(t)
    putBundle(three, `${served.modelsDir}/c`)
    writeFileSync(`${served.modelsDir}/c/weights.bin`, 'broken')
    const { status, body } = await served.admin('POST', '', { bundle: 'c', wait: true })
    assert.equal(status, 422)
    assert.equal(body.code, 'BUNDLE_INVALID')
    assert.match(body.message, /weights\.bin must have \d+ bytes, got 6$/)
    assert.equal((await rank(served, 'u')).body.model, idOf(one))
    const { body: model } = await served.admin('GET', `/${NAME}`)
    const failed = model.versions.find((v: { state: string }) => v.state === 'failed')
    assert.equal(failed.version, versionOf(three))
    assert.match(failed.reason, /weights\.bin/)
    assert.equal((await rank(served, 'u', idOf(three))).status, 404)
    const promoted = await served.admin('POST', `/${NAME}/promote`, { version: versionOf(three) })
    assert.equal(promoted.status, 409)
    putBundle(three, `${served.modelsDir}/d`)
    assert.equal((await served.admin('POST', '', { bundle: 'd', wait: true })).status, 200)
  })

  test('what the models are not in the state for is 409, with what would help', async (t) => {
    const served = await serveTwo(t, { maxModels: 2 })
    const conflicts: [string, ReturnType<typeof served.admin>, RegExp][] = [
      ['twice', served.admin('POST', '', { bundle: 'b' }), /is ready already/],
      ['no former', served.admin('POST', `/${NAME}/rollback`), /no former version/],
      [
        'the default',
        served.admin('DELETE', `/${NAME}/versions/${versionOf(one)}`),
        /is stable and of the default model: promote another first/,
      ],
    ]
    for (const [what, answer, message] of conflicts) {
      const { status, body } = await answer
      assert.equal(status, 409, what)
      assert.equal(body.code, 'CONFLICT')
      assert.match(body.message, message)
    }
    putBundle(three, `${served.modelsDir}/c`)
    const { status, body } = await served.admin('POST', '', { bundle: 'c' })
    assert.equal(status, 409)
    assert.match(body.message, /at most 2 versions/)
  })

  test('what is not there is 404, what makes no sense 400', async (t) => {
    const served = await serveTwo(t)
    const version = '0'.repeat(16)
    const cases: [number, Parameters<typeof served.admin>][] = [
      [404, ['GET', '/other']],
      [404, ['POST', '/other/promote', { version }]],
      [404, ['POST', `/${NAME}/promote`, { version }]],
      [404, ['POST', '/other/rollback']],
      [404, ['PUT', `/${NAME}/canary`, { version, weightPercent: 5 }]],
      [404, ['DELETE', `/${NAME}/versions/${version}`]],
      [400, ['POST', `/${NAME}/promote`, { version: 'x' }]],
      [400, ['POST', `/${NAME}/promote`, { version, rampSec: -1 }]],
      [400, ['PUT', `/${NAME}/canary`, { version, weightPercent: 101 }]],
      [400, ['POST', '', { bundle: '../secret' }]],
      [400, ['POST', '', { bundle: '/etc' }]],
      [400, ['POST', '', { bundle: '.' }]],
      [400, ['POST', '', {}]],
      [422, ['POST', '', { bundle: 'nowhere' }]],
      [405, ['DELETE', '']],
      [405, ['GET', `/${NAME}/promote`]],
    ]
    for (const [status, request] of cases) {
      const res = await served.admin(...request)
      assert.equal(res.status, status, `${request.join(' ')}: ${JSON.stringify(res.body)}`)
    }
  })

  test('another machine without an API key is 403', async (t) => {
    const { app } = await serveTwo(t)
    for (const [remoteAddress, status] of [
      ['10.0.0.7', 403],
      ['::1', 200],
    ] as const) {
      const res = await app.inject({ url: '/v1/admin/models', remoteAddress })
      assert.equal(res.statusCode, status)
    }
  })

  test('every admin route is in the document, and its references are there', async (t) => {
    const { app } = await serveTwo(t)
    const doc = (await app.inject('/docs/json')).json()
    const paths = Object.keys(doc.paths).filter((path) => path.startsWith('/v1/admin'))
    assert.equal(paths.length, 7)
    for (const [, name = ''] of JSON.stringify(doc).matchAll(/"#\/components\/schemas\/(\w+)"/g)) {
      assert.ok(Object.hasOwn(doc.components.schemas, name), name)
    }
  })
})

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}
