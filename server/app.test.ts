import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { Ranker, RankOptions } from '../falcon/types.js'
import { RankError } from '../model/errors.js'
import type { RankInput } from '../model/request.js'
import { appOf, client, rankerOf, resultOf } from '../test/plain-ranker.js'

const GOOD = { user: { id: 'u' }, candidates: ['a', 'b'] }
const EVENT = { item: 'x', time: 5 }

describe('POST /v1/rank', () => {
  test('answers items best first, without places or logits', async (t) => {
    const post = await client(t)
    const res = await post(GOOD)
    assert.equal(res.statusCode, 200)
    const { timings, ...answer } = res.json()
    const { queueMs, totalMs, ...stages } = timings
    assert.deepEqual(stages, { sequenceMs: 1, historyMs: 2, scoreMs: 3, headsMs: 4 })
    assert.ok(queueMs > 0)
    assert.ok(Math.abs(totalMs - queueMs - 10) < 0.002, 'all of it')
    assert.deepEqual(answer, {
      model: 'toy@abc123',
      items: [
        { item: 'a', score: 1, tasks: { click: 1 } },
        { item: 'b', score: 0.5, tasks: { click: 0.5 } },
      ],
      kv: { state: 'stale', tier: 2, reusedTokens: 8, prefilledTokens: 2 },
      warnings: [],
    })
  })

  test('hands all of the request to the ranker, history before histories, now as the time', async (t) => {
    const seen: [RankInput, RankOptions][] = []
    const post = await client(t, async (input, { signal, waitedMs = 0, ...options }) => {
      assert.equal(signal?.aborted, false)
      assert.ok(waitedMs > 0)
      seen.push([input, options])
      return resultOf(input)
    })
    const event = { item: 'h', time: 7, actions: ['click'], features: { f: 1, g: 'x' } }
    const res = await post({
      user: { id: 'u', features: { country: 'FR' } },
      history: [event],
      histories: [[EVENT], []],
      series: { city: [{ value: 'Paris', time: 3 }] },
      historyOffset: 70,
      candidates: ['a', { item: 'b', features: { price: 2.5 } }, 'a'],
      topK: 2,
      weights: { click: 2 },
      deadlineMs: 50,
      partial: true,
      model: 'toy',
    })
    assert.equal(res.statusCode, 200)
    assert.deepEqual(seen, [
      [
        {
          user: { id: 'u', features: { country: 'FR' } },
          histories: [[event], [EVENT], []],
          series: { city: [{ value: 'Paris', time: 3 }] },
          historyOffset: 70,
          candidates: [{ item: 'a' }, { item: 'b', features: { price: 2.5 } }, { item: 'a' }],
          time: 1000,
        },
        { topK: 2, weights: { click: 2 }, deadlineMs: 50, partial: true },
      ],
    ])
  })

  test('ranks a user without any history', async (t) => {
    let histories: unknown
    const post = await client(t, async (input) => {
      histories = input.histories
      return resultOf(input)
    })
    assert.equal((await post(GOOD)).statusCode, 200)
    assert.deepEqual(histories, [])
  })

  test('explains the run when asked', async (t) => {
    const post = await client(t)
    const res = await post({ ...GOOD, candidates: ['a'], explain: true })
    const { items, explain, kv } = res.json()
    assert.deepEqual(
      kv,
      { state: 'stale', tier: 2, reusedTokens: 8, prefilledTokens: 2 },
      'as always',
    )
    assert.deepEqual(items, [{ item: 'a', index: 0, score: 1, tasks: { click: 1 }, logits: [0.5] }])
    const { parseMs, queueMs, totalMs, ...timings } = explain.timings
    assert.ok(parseMs > 0)
    assert.ok(totalMs >= queueMs)
    assert.deepEqual(
      { ...explain, timings },
      {
        kv: {
          state: 'stale',
          tier: 2,
          reusedTokens: 8,
          prefilledTokens: 2,
          decision: 'append',
          measuredMs: 5,
          predictedMs: 4,
        },
        timings: { sequenceMs: 1, historyMs: 2, scoreMs: 3, headsMs: 4 },
        historyTokens: 10,
        truncatedEvents: 0,
        unknownItems: { history: { count: 0, items: [] }, candidates: { count: 0, items: [] } },
        candidates: 1,
        scored: 1,
        microBatches: 1,
        microBatchMs: [3],
        microBatchSize: 4,
        retries: 0,
      },
    )
  })

  test('says so when the deadline came before every candidate was scored', async (t) => {
    const post = await client(t, async (input) => resultOf(input, { scored: 1 }))
    assert.equal((await post({ ...GOOD, partial: true })).json().partial, true)
  })

  test('takes the name of the model alone or with its version', async (t) => {
    const post = await client(t)
    assert.equal((await post({ ...GOOD, model: 'toy' })).statusCode, 200)
    assert.equal((await post({ ...GOOD, model: 'toy@abc123' })).statusCode, 200)
    const res = await post({ ...GOOD, model: 'toy@old' })
    assert.equal(res.statusCode, 404)
    assert.deepEqual(res.json(), {
      code: 'MODEL_NOT_FOUND',
      message: 'no model "toy@old": expected "toy" or "toy@abc123"',
      path: '/model',
    })
  })

  test('runs a request again after a worker crashed, once, within what is left of the deadline', async (t) => {
    const deadlines: (number | undefined)[] = []
    const post = await client(t, async (input, { deadlineMs = 0, waitedMs = 0 }) => {
      deadlines.push(deadlineMs - waitedMs)
      if (deadlines.length === 1) throw new RankError('WORKER_CRASHED', 'worker 1 exited with 139')
      return resultOf(input)
    })
    const res = await post({ ...GOOD, deadlineMs: 60_000, explain: true })
    assert.equal(res.statusCode, 200)
    assert.equal(res.json().explain.retries, 1)
    const [first = 0, second = 0] = deadlines
    assert.ok(first < 60_000 && second < first && second > 0, String(deadlines))
  })

  test('answers 503 with Retry-After when the second run crashes too', async (t) => {
    let runs = 0
    const post = await client(t, async () => {
      runs++
      throw new RankError('WORKER_CRASHED', 'worker 1 exited with 139')
    })
    const res = await post(GOOD)
    assert.equal(res.statusCode, 503)
    assert.equal(res.headers['retry-after'], '1')
    assert.deepEqual(res.json(), { code: 'WORKER_CRASHED', message: 'worker 1 exited with 139' })
    assert.equal(runs, 2)
  })

  test('does not run again what its client gave up', async (t) => {
    let runs = 0
    const post = await client(t, async () => {
      runs++
      throw new RankError('CANCELLED', 'the client left')
    })
    assert.equal((await post(GOOD)).statusCode, 499)
    assert.equal(runs, 1)
  })

  test('does not run again when the crash used up the deadline', async (t) => {
    let runs = 0
    const post = await client(t, async () => {
      runs++
      const end = performance.now() + 2
      while (performance.now() < end);
      throw new RankError('WORKER_CRASHED', 'worker 1 exited with 139')
    })
    const res = await post({ ...GOOD, deadlineMs: 1 })
    assert.equal(res.statusCode, 504)
    assert.equal(runs, 1)
  })
})

describe('readiness', () => {
  test('/readyz is 503 while every worker is gone', async (t) => {
    const ranker = rankerOf()
    const { engine, ...others } = ranker.stats()
    const stats = () => ({ ...others, engine: { ...engine, workers: 0 } })
    const app = await appOf(undefined, { ranker: () => ({ ...ranker, stats }) })
    t.after(() => app.close())
    const res = await app.inject('/readyz')
    assert.equal(res.statusCode, 503)
    assert.deepEqual(res.json(), { status: 'crashed' })
  })

  test('/readyz and /v1/rank are 503 until the model is there, /livez is always 200', async (t) => {
    let ranker: Ranker | undefined
    let isDraining = false
    const app = await appOf(undefined, { ranker: () => ranker, isDraining: () => isDraining })
    t.after(() => app.close())
    const rank = () => app.inject({ method: 'POST', url: '/v1/rank', payload: GOOD })
    const readyz = () => app.inject('/readyz')

    assert.deepEqual((await readyz()).json(), { status: 'loading' })
    assert.equal((await readyz()).statusCode, 503)
    const early = await rank()
    assert.equal(early.statusCode, 503)
    assert.equal(early.json().code, 'NOT_READY')
    assert.equal(early.headers['retry-after'], '2')
    assert.deepEqual((await app.inject('/v1/models')).json(), { models: [] })
    assert.doesNotMatch((await app.inject('/metrics')).body, /^peregrine_engine_workers/m)

    ranker = rankerOf()
    assert.deepEqual((await readyz()).json(), { status: 'ready' })
    assert.equal((await readyz()).statusCode, 200)
    assert.equal((await rank()).statusCode, 200)
    assert.deepEqual((await app.inject('/v1/models')).json(), {
      models: [{ ...ranker.model, state: 'ready', labels: ['stable'] }],
    })

    isDraining = true
    assert.deepEqual((await readyz()).json(), { status: 'draining' })
    assert.equal((await readyz()).statusCode, 503)
    assert.equal((await app.inject('/livez')).statusCode, 200)
  })
})

describe('/docs', () => {
  test('is a page over an OpenAPI 3.1 document with every route, schema and error', async (t) => {
    const app = await appOf()
    t.after(() => app.close())
    assert.equal((await app.inject('/docs')).statusCode, 200)
    const doc = (await app.inject('/docs/json')).json()
    assert.equal(doc.openapi, '3.1.0')
    assert.deepEqual(
      new Set(Object.keys(doc.paths)),
      new Set([
        '/v1/rank',
        '/v1/rank/batch',
        '/v1/retrieve',
        '/v2',
        '/v2/health/live',
        '/v2/health/ready',
        '/v2/models/{name}',
        '/v2/models/{name}/ready',
        '/v2/models/{name}/infer',
        '/v2/models/{name}/versions/{version}',
        '/v2/models/{name}/versions/{version}/ready',
        '/v2/models/{name}/versions/{version}/infer',
        '/v1/users/{id}/events',
        '/v1/users/{id}',
        '/v1/prefetch',
        '/v1/models',
        '/livez',
        '/readyz',
        '/metrics',
      ]),
    )
    assert.deepEqual(Object.keys(doc.components.schemas), [
      'RankRequest',
      'RankAnswer',
      'RetrieveRequest',
      'RetrieveAnswer',
      'PrefetchRequest',
      'PrefetchAnswer',
      'EventsRequest',
      'EventsAnswer',
      'UserAnswer',
      'ModelList',
      'AdminModel',
      'AdminModelList',
      'LoadRequest',
      'PromoteRequest',
      'CanaryRequest',
      'ShadowRequest',
      'Problem',
    ])
    const { post } = doc.paths['/v1/rank']
    assert.deepEqual(post.requestBody.content['application/json'].schema, {
      $ref: '#/components/schemas/RankRequest',
    })
    const statuses = ['200', '400', '404', '413', '415', '422', '429', '500', '503', '504']
    assert.deepEqual(Object.keys(post.responses), statuses)
    const references = JSON.stringify(doc).match(/"\$ref":"[^"]*"/g) ?? []
    for (const reference of references) {
      const [, name = ''] = /#\/components\/schemas\/(\w+)"/.exec(reference) ?? []
      assert.ok(Object.hasOwn(doc.components.schemas, name), reference)
    }
  })

  test('has examples that the service takes', async (t) => {
    const post = await client(t)
    const app = await appOf()
    t.after(() => app.close())
    const doc = (await app.inject('/docs/json')).json()
    for (const [name, url] of [
      ['RankRequest', '/v1/rank'],
      ['PrefetchRequest', '/v1/prefetch'],
      ['EventsRequest', '/v1/users/u1/events'],
    ] as const) {
      const [example] = doc.components.schemas[name].examples
      assert.equal((await post(example, url)).statusCode, 200, name)
    }
    const infer = doc.paths['/v2/models/{name}/infer'].post.requestBody
    const { example } = infer.content['application/json']
    assert.equal((await post(example, '/v2/models/toy/infer')).statusCode, 200)
  })
})
