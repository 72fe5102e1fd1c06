import assert from 'node:assert/strict'
import { describe, type TestContext, test } from 'node:test'
import type { PrefetchOptions, Ranker } from '../falcon/types.js'
import { deferred } from '../model/deferred.js'
import { RankError } from '../model/errors.js'
import type { HistoryInput, RankInput } from '../model/request.js'
import { appOf, LIMITS, rankerOf, resultOf } from '../test/plain-ranker.js'
import type { AppOptions } from './app.js'
import { createLogger } from './log.js'

const EVENT = { item: 'x', time: 5, actions: ['click'] }
const MISS = { state: 'miss', reusedTokens: 0, prefilledTokens: 10 } as const

/** Calls an app of its own with JSON. */
async function client(
  t: TestContext,
  changes: Partial<Ranker> = {},
  options: Partial<AppOptions> = {},
) {
  const ranker = { ...rankerOf(), ...changes }
  const app = await appOf(undefined, { ranker: () => ranker, ...options })
  t.after(() => app.close())
  const call = (
    method: 'GET' | 'POST' | 'DELETE' | 'PUT',
    url: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ) =>
    app.inject({
      method,
      url,
      headers: { ...(body !== undefined && { 'content-type': 'application/json' }), ...headers },
      ...(body !== undefined && { payload: JSON.stringify(body) }),
    })
  return { app, call }
}

const away = async () => {
  throw new RankError('STORE_UNAVAILABLE', 'Redis must answer for stored events, got no connection')
}

describe('/v1/users/{id}', () => {
  test('appends, shows and forgets', async (t) => {
    const { call } = await client(t)
    const first = await call('POST', '/v1/users/u1/events', {
      events: [{ ...EVENT, time: 9 }, EVENT],
    })
    assert.equal(first.statusCode, 200)
    assert.deepEqual(first.json(), { stored: 2, duplicates: 0, total: 2, trimmed: 0 })
    const again = await call('POST', '/v1/users/u1/events', { events: [EVENT] })
    assert.deepEqual(again.json(), { stored: 0, duplicates: 1, total: 2, trimmed: 0 })

    const state = await call('GET', '/v1/users/u1')
    assert.equal(state.statusCode, 200)
    assert.deepEqual(state.json(), {
      user: { id: 'u1' },
      count: 2,
      firstTime: 5,
      lastTime: 9,
      kvTokens: { memory: 10 },
      events: [EVENT, { ...EVENT, time: 9 }],
    })
    const gone = await call('DELETE', '/v1/users/u1')
    assert.equal(gone.statusCode, 204)
    assert.equal(gone.body, '')
    const after = await call('GET', '/v1/users/u1')
    assert.deepEqual(after.json(), {
      user: { id: 'u1' },
      count: 0,
      kvTokens: { memory: 10 },
      events: [],
    })
    assert.equal((await call('DELETE', '/v1/users/nobody')).statusCode, 204)
  })

  test('takes every id that /v1/rank takes, escaped', async (t) => {
    const { call } = await client(t)
    for (const id of ['a/b', '../a', 'a b', '😀'.repeat(128), 'é?#%', 'x'.repeat(256), '{u}']) {
      const url = `/v1/users/${encodeURIComponent(id)}`
      assert.equal((await call('POST', `${url}/events`, { events: [EVENT] })).statusCode, 200, id)
      assert.deepEqual((await call('GET', url)).json().user, { id })
      assert.equal((await call('DELETE', url)).statusCode, 204, id)
      assert.equal((await call('GET', url)).json().count, 0)
    }
    for (const id of ['x'.repeat(257), '😀'.repeat(129)]) {
      const res = await call('GET', `/v1/users/${encodeURIComponent(id)}`)
      assert.equal(res.statusCode, 400)
      assert.match(res.json().message, /^a user id must have 1 to 256 characters, got 25[78]$/)
    }
    assert.equal((await call('GET', '/v1/users/%ff')).statusCode, 400)
  })

  test('has its methods, and says which', async (t) => {
    const { call } = await client(t)
    for (const [method, url, allow] of [
      ['POST', '/v1/users/u', 'GET, DELETE'],
      ['GET', '/v1/users/u/events', 'POST'],
      ['PUT', '/v1/users/u', 'GET, DELETE'],
      ['GET', '/v1/prefetch', 'POST'],
    ] as const) {
      const res = await call(method, url)
      assert.equal(res.statusCode, 405, `${method} ${url}`)
      assert.equal(res.headers.allow, allow)
    }
    assert.equal((await call('GET', '/v1/users/u/other')).statusCode, 404)
  })

  test('is 503 with Retry-After while the model loads, and while the store is away', async (t) => {
    const calls = [
      ['POST', '/v1/users/u/events', { events: [EVENT] }],
      ['GET', '/v1/users/u', undefined],
      ['DELETE', '/v1/users/u', undefined],
    ] as const
    const { call } = await client(t, { appendEvents: away, eventsOf: away, forget: away })
    const loading = await client(t, {}, { ranker: () => undefined })
    for (const [method, url, body] of calls) {
      const res = await call(method, url, body)
      assert.equal(res.statusCode, 503, url)
      assert.equal(res.json().code, 'STORE_UNAVAILABLE')
      assert.equal(res.headers['retry-after'], '1')
      const early = await loading.call(method, url, body)
      assert.equal(early.statusCode, 503, url)
      assert.equal(early.json().code, 'NOT_READY')
      assert.equal(early.headers['retry-after'], '2')
    }
  })
})

describe('POST /v1/users/{id}/events', () => {
  const url = '/v1/users/u/events'

  test('takes an idempotency key from the body or the header', async (t) => {
    const { call } = await client(t)
    const events = [EVENT]
    const key = { 'idempotency-key': 'k1' }
    const first = (await call('POST', url, { events }, key)).json()
    assert.deepEqual((await call('POST', url, { events }, key)).json(), first)
    assert.deepEqual((await call('POST', url, { events, idempotencyKey: 'k1' })).json(), first)
    assert.deepEqual((await call('POST', url, { events, idempotencyKey: 'k1' }, key)).json(), first)
    assert.equal((await call('POST', url, { events })).json().duplicates, 1)
    const other = await call('POST', url, { events: [EVENT, { ...EVENT, time: 6 }] }, key)
    assert.equal(other.statusCode, 400)
    assert.equal(other.json().path, '/idempotencyKey')
  })

  for (const [name, body, headers, path, message] of [
    ['no events', {}, {}, '', /^lacks the fields: "events"$/],
    ['an empty list', { events: [] }, {}, '/events', /1 items, got an array of 0$/],
    ['a list', [], {}, '', /^body must be a JSON object, got an array of 0$/],
    ['an unknown field', { events: [EVENT], x: 1 }, {}, '', /^has unknown fields: "x"$/],
    ['candidates', { events: [EVENT], candidates: ['a'] }, {}, '', /unknown fields: "candidates"/],
    [
      'a bad event',
      { events: [EVENT, { ...EVENT, time: 'x' }] },
      {},
      '/events/1/time',
      /^must be integer, got "x"$/,
    ],
    [
      'a key of the wrong type',
      { events: [EVENT], idempotencyKey: 5 },
      {},
      '/idempotencyKey',
      /5$/,
    ],
    [
      'two keys that differ',
      { events: [EVENT], idempotencyKey: 'a' },
      { 'idempotency-key': 'b' },
      '/idempotencyKey',
      /^must be the same as the header Idempotency-Key, got another$/,
    ],
    [
      'a long key',
      { events: [EVENT] },
      { 'idempotency-key': 'x'.repeat(257) },
      undefined,
      /^Idempotency-Key must have 1 to 256 characters, got 257$/,
    ],
  ] as const) {
    test(`refuses ${name}`, async (t) => {
      const { call } = await client(t)
      const res = await call('POST', url, body, headers)
      assert.equal(res.statusCode, 400)
      assert.equal(res.json().path, path)
      assert.match(res.json().message, message)
      assert.equal((await call('GET', '/v1/users/u')).json().count, 0)
    })
  }

  test('refuses too many events and too many names', async (t) => {
    const { call } = await client(t)
    const res = await call('POST', url, { events: Array(LIMITS.maxHistoryEvents + 1).fill(EVENT) })
    assert.equal(res.statusCode, 422)
    assert.deepEqual(res.json(), {
      code: 'LIMIT_EXCEEDED',
      message: 'events must be at most 20, got 21',
      path: '/events',
    })
    const features = Object.fromEntries(Array.from({ length: 300 }, (_, i) => [`f${i}`, 1]))
    const crowd = await call('POST', url, { events: [EVENT, { ...EVENT, features }] })
    assert.equal(crowd.statusCode, 400)
    assert.equal(crowd.json().path, '/events/1/features')
  })
})

describe('/v1/rank', () => {
  test('uses the stored history when history is absent, also in a batch, and not when it is []', async (t) => {
    const seen: unknown[] = []
    const { call } = await client(t, {
      rank: async (input: RankInput, { useStored }) => {
        seen.push([useStored, input.histories.length])
        return resultOf(input)
      },
    })
    const absent = { user: { id: 'u' }, candidates: ['a'] }
    const requests = [
      absent,
      { ...absent, history: [] },
      { ...absent, histories: [[EVENT]] },
      { ...absent, history: [EVENT] },
    ]
    for (const body of requests) await call('POST', '/v1/rank', body)
    await call('POST', '/v1/rank/batch', { requests })
    const expected = [
      [true, 0],
      [undefined, 1],
      [true, 1],
      [undefined, 1],
    ]
    assert.deepEqual(seen, [...expected, ...expected])
  })
})

describe('POST /v1/prefetch', () => {
  const url = '/v1/prefetch'
  const body = { user: { id: 'u' } }

  test('hands over all of the request, and with wait answers what the cache did', async (t) => {
    const seen: [HistoryInput, PrefetchOptions][] = []
    const { call } = await client(t, {
      prefetch: async (input, options) => {
        seen.push([input, options])
        return { kv: Promise.resolve(MISS), warnings: [] }
      },
    })
    const whole = {
      user: { id: 'u', features: { country: 'FR' } },
      history: [EVENT],
      histories: [[], [EVENT]],
      series: { city: [{ value: 'Paris', time: 3 }] },
      time: 77,
    }
    const res = await call('POST', url, { ...whole, model: 'toy', wait: true })
    assert.equal(res.statusCode, 200)
    assert.deepEqual(res.json(), { model: 'toy@abc123', kv: MISS, warnings: [] })
    await call('POST', url, { ...body, wait: true })
    const { user, series, time } = whole
    assert.deepEqual(
      seen.map(([input, { useStored }]) => [input, useStored]),
      [
        [{ user, histories: [[EVENT], [], [EVENT]], series, time }, false],
        [{ user: { id: 'u' }, histories: [], series: {}, time: 1000 }, true],
      ],
    )
  })

  test('without wait answers 202 once it is under way, and counts it as in flight until it is done', async (t) => {
    const kv = deferred<typeof MISS>()
    const { app, call } = await client(t, {
      prefetch: async () => ({ kv: kv.promise, warnings: [] }),
    })
    const metric = async (line: string) =>
      (await app.inject('/metrics')).body.includes(`\n${line}\n`)
    for (let i = 0; i < 3; i++) {
      const res = await call('POST', url, body)
      assert.equal(res.statusCode, 202)
      assert.deepEqual(res.json(), { model: 'toy@abc123', warnings: [] })
    }
    assert.ok(await metric('peregrine_inflight_requests 3'))
    kv.resolve(MISS)
    await new Promise((resolve) => setImmediate(resolve))
    assert.ok(await metric('peregrine_inflight_requests 0'))
    assert.ok(await metric('peregrine_prefetches_total{model="toy@abc123",state="miss"} 3'))
    assert.ok(await metric('peregrine_tokens_prefilled_total{model="toy@abc123"} 30'))
  })

  test('what goes wrong before is the answer, with paths as the client wrote them', async (t) => {
    const { call } = await client(t, {
      prefetch: async () => {
        throw new RankError('INVALID_REQUEST', 'unknown action', {
          path: '/histories/0/1/actions/0',
        })
      },
    })
    for (const wait of [false, true]) {
      const given = await call('POST', url, { ...body, history: [EVENT], wait })
      assert.equal(given.statusCode, 400)
      assert.equal(given.json().path, '/history/1/actions/0')
      const stored = await call('POST', url, { ...body, histories: [[EVENT]], wait })
      assert.equal(stored.json().path, '/histories/0/1/actions/0')
    }
  })

  test('what goes wrong after 202 is counted, and nobody else’s error', async (t) => {
    const { app, call } = await client(t, {
      prefetch: async () => ({
        kv: Promise.reject(new RankError('WORKER_CRASHED', 'worker 1 exited')),
        warnings: [],
      }),
    })
    assert.equal((await call('POST', url, body)).statusCode, 202)
    const { body: metrics } = await app.inject('/metrics')
    assert.match(metrics, /^peregrine_errors_total\{code="WORKER_CRASHED"\} 1$/m)
    assert.equal((await call('POST', url, { ...body, wait: true })).statusCode, 503)
  })

  test('ends with the app', async (t) => {
    const signals: (AbortSignal | undefined)[] = []
    const { app, call } = await client(t, {
      prefetch: async (_, { signal }) => {
        signals.push(signal)
        const kv = new Promise<never>((_, reject) => {
          signal?.addEventListener('abort', () => reject(signal.reason))
        })
        return { kv, warnings: [] }
      },
    })
    await call('POST', url, body)
    assert.equal(signals[0]?.aborted, false)
    await app.close()
    assert.equal(signals[0]?.aborted, true)
  })

  test('refuses an unknown model, candidates and bad histories', async (t) => {
    const { call } = await client(t)
    assert.equal((await call('POST', url, { ...body, model: 'x' })).statusCode, 404)
    const extra = await call('POST', url, { ...body, candidates: ['a'] })
    assert.equal(extra.json().message, 'has unknown fields: "candidates"')
    const bad = await call('POST', url, { ...body, history: [EVENT, 5] })
    assert.equal(bad.json().path, '/history/1')
    const many = await call('POST', url, { ...body, history: Array(21).fill(EVENT) })
    assert.equal(many.statusCode, 422)
  })
})

test('neither logs nor metrics name a user', async (t) => {
  const lines: string[] = []
  const logger = createLogger('trace', { write: (line) => void lines.push(line) })
  const { app, call } = await client(t, { forget: away }, { logger })
  await call('POST', '/v1/users/alice/events', { events: [EVENT] })
  await call('GET', '/v1/users/alice')
  await call('DELETE', '/v1/users/alice')
  await call('PUT', '/v1/users/alice')
  await call('GET', '/v1/users/alice/nothing')
  const { body } = await app.inject('/metrics')
  assert.match(body, /peregrine_requests_total\{route="\/v1\/users\/:id",status="200"\} 1/)
  assert.match(body, /^peregrine_events_total\{result="stored"\} 1$/m)
  assert.match(body, /^peregrine_events_users 1$/m)
  assert.doesNotMatch(body, /^peregrine_(redis|forget)/m, 'only where there is a Redis')
  assert.doesNotMatch(`${lines.join('')}${body}`, /alice/)
  assert.ok(lines.some((line) => line.includes('"route":"/v1/users/:id/events"')))
})
