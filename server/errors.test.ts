import assert from 'node:assert/strict'
import { createConnection } from 'node:net'
import { describe, test } from 'node:test'
import { type ErrorCode, RankError } from '../model/errors.js'
import { appOf, client, LIMITS } from '../test/plain-ranker.js'
import { STATUS } from './errors.js'

const GOOD = { user: { id: 'u' }, candidates: ['a', 'b'] }
const EVENT = { item: 'x', time: 5 }
const ROOMY = { ...LIMITS, bodyLimitBytes: 2 ** 25, maxCandidates: 2e6, maxHistoryEvents: 2e6 }

/** What each bad request gets: the path of the fault, and the sentence about it. */
const INVALID: [name: string, body: unknown, path: string | undefined, message: RegExp][] = [
  ['null', null, '', /^body must be a JSON object, got null$/],
  ['a list', [], '', /^body must be a JSON object, got an array of 0$/],
  ['nothing in it', {}, '', /^lacks the fields: "user", "candidates"$/],
  ['malformed JSON', '{"user": {', undefined, /^body must be JSON: /],
  ['no body', '', undefined, /^body must be a JSON object, got nothing$/],
  ['NaN', '{"user":{"id":"u"},"candidates":["a"],"time":NaN}', undefined, /^body must be JSON: /],
  ['bytes that are no UTF-8', Buffer.from([0x22, 0xff, 0x22]), undefined, /UTF-8/],
  ['__proto__', '{"__proto__":{"a":1}}', undefined, /must not have the keys "__proto__"/],
  ['an escaped __proto__', '{"\\u005f_proto__":{"a":1}}', undefined, /"__proto__"/],
  ['constructor.prototype', '{"constructor":{"prototype":1}}', undefined, /"constructor"/],
  ['an unknown field', { ...GOOD, frobnicate: 1 }, '', /^has unknown fields: "frobnicate"$/],
  ['no user id', { ...GOOD, user: {} }, '/user', /^lacks the fields: "id"$/],
  ['an empty user id', { ...GOOD, user: { id: '' } }, '/user/id', /got ""$/],
  ['a number as user id', { ...GOOD, user: { id: 7 } }, '/user/id', /^must be string, got 7$/],
  ['a long user id', { ...GOOD, user: { id: 'x'.repeat(257) } }, '/user/id', /256 characters/],
  ['no candidates', { ...GOOD, candidates: [] }, '/candidates', /1 items, got an array of 0$/],
  ['candidates that are no list', { ...GOOD, candidates: 'a' }, '/candidates', /array, got "a"$/],
  [
    'a candidate that is a number',
    { ...GOOD, candidates: ['a', 42] },
    '/candidates/1',
    /^must be an item id \(string\) or an object \{item, features\?\}, got 42$/,
  ],
  ['a candidate that is null', { ...GOOD, candidates: [null] }, '/candidates/0', /got null$/],
  ['an empty candidate', { ...GOOD, candidates: [''] }, '/candidates/0', /1 to 256 characters/],
  ['a candidate without item', { ...GOOD, candidates: [{}] }, '/candidates/0', /fields: "item"$/],
  [
    'a candidate with an unknown field',
    { ...GOOD, candidates: [{ item: 'a', price: 1 }] },
    '/candidates/0',
    /^has unknown fields: "price"$/,
  ],
  [
    'a feature that is an object',
    { ...GOOD, candidates: [{ item: 'a', features: { f: {} } }] },
    '/candidates/0/features/f',
    /^must be a string of at most 1024 characters or a finite number, got an object$/,
  ],
  [
    'a feature that is not finite',
    '{"user":{"id":"u","features":{"f":1e999}},"candidates":["a"]}',
    '/user/features/f',
    /a finite number, got Infinity$/,
  ],
  [
    'a feature with a slash and a tilde in its name',
    { ...GOOD, user: { id: 'u', features: { 'a/b~c': true } } },
    '/user/features/a~1b~0c',
    /got true$/,
  ],
  [
    'a feature that hides behind a line break',
    { ...GOOD, user: { id: 'u', features: { 'a\nb': {} } } },
    '/user/features/a\nb',
    /got an object$/,
  ],
  [
    'a long feature name',
    { ...GOOD, user: { id: 'u', features: { ['x'.repeat(129)]: 1 } } },
    '/user/features',
    /^must have names of 1 to 128 characters, got "x/,
  ],
  ['a history that is no list', { ...GOOD, history: {} }, '/history', /array, got an object$/],
  [
    'an event without time',
    { ...GOOD, history: [EVENT, { item: 'x' }] },
    '/history/1',
    /^lacks the fields: "time"$/,
  ],
  [
    'a time that is a string',
    { ...GOOD, history: [EVENT, { ...EVENT, time: '5' }] },
    '/history/1/time',
    /^must be integer, got "5"$/,
  ],
  [
    'a time in milliseconds',
    { ...GOOD, history: [{ ...EVENT, time: 1_700_000_000_000 }] },
    '/history/0/time',
    /^must be whole seconds, at most 253402300799, got 1700000000000: milliseconds\?$/,
  ],
  ['a query time in milliseconds', { ...GOOD, time: 1.7e12 }, '/time', /milliseconds\?$/],
  ['a negative time', { ...GOOD, time: -1 }, '/time', /got -1$/],
  ['a fractional time', { ...GOOD, time: 1.5 }, '/time', /^must be integer, got 1.5$/],
  ['a huge time', `{"user":{"id":"u"},"candidates":["a"],"time":1e999}`, '/time', /got Infinity$/],
  [
    'an action that is a number',
    { ...GOOD, history: [{ ...EVENT, actions: ['click', 3] }] },
    '/history/0/actions/1',
    /^must be string, got 3$/,
  ],
  [
    'a fault in a second source',
    { ...GOOD, histories: [[EVENT], [EVENT, 5]] },
    '/histories/1/1',
    /^must be object, got 5$/,
  ],
  ['a source that is no list', { ...GOOD, histories: [5] }, '/histories/0', /array, got 5$/],
  [
    'too many sources',
    { ...GOOD, histories: Array(33).fill([]) },
    '/histories',
    /got an array of 33$/,
  ],
  [
    'a series entry without value',
    { ...GOOD, series: { city: [{ time: 1 }] } },
    '/series/city/0',
    /^lacks the fields: "value"$/,
  ],
  ['a series that is no list', { ...GOOD, series: { city: 1 } }, '/series/city', /got 1$/],
  ['an offset below 0', { ...GOOD, historyOffset: -1 }, '/historyOffset', />= 0, got -1$/],
  ['topK of 0', { ...GOOD, topK: 0 }, '/topK', /got 0$/],
  ['a fractional topK', { ...GOOD, topK: 1.5 }, '/topK', /^must be integer, got 1.5$/],
  ['a deadline of 0', { ...GOOD, deadlineMs: 0 }, '/deadlineMs', /got 0$/],
  ['a deadline too far', { ...GOOD, deadlineMs: 60_001 }, '/deadlineMs', /60000, got 60001$/],
  ['partial as text', { ...GOOD, partial: 'yes' }, '/partial', /^must be boolean, got "yes"$/],
  ['explain as number', { ...GOOD, explain: 1 }, '/explain', /^must be boolean, got 1$/],
  ['a weight that is text', { ...GOOD, weights: { click: '1' } }, '/weights/click', /got "1"$/],
  ['an infinite score', { ...GOOD, weights: { click: 1e300 } }, '/weights/click', /got 1e\+300$/],
  [
    'a weight of no task',
    { ...GOOD, weights: { buy: 1 } },
    '/weights/buy',
    /^weights must name tasks \(click\), got "buy"$/,
  ],
  [
    'a weight of toString',
    { ...GOOD, weights: { toString: 1 } },
    '/weights/toString',
    /^weights must name tasks \(click\), got "toString"$/,
  ],
]

describe('bad requests get 400, the path, what was expected and what was got:', () => {
  for (const [name, body, path, message] of INVALID) {
    test(name, async (t) => {
      const post = await client(t)
      const res = await post(body)
      const problem = res.json()
      assert.equal(res.statusCode, 400, res.body)
      assert.equal(problem.code, 'INVALID_REQUEST')
      assert.equal(problem.path, path, res.body)
      assert.match(problem.message, message)
      assert.equal((await post(GOOD)).statusCode, 200, 'still serving')
    })
  }

  test('50,000 levels of nesting', async (t) => {
    const post = await client(t, undefined, { config: ROOMY })
    const deep = `${'['.repeat(50_000)}${']'.repeat(50_000)}`
    const inside = await post(`{"user":{"id":"u","features":{"f":${deep}}},"candidates":["a"]}`)
    assert.equal(inside.statusCode, 400)
    assert.equal(inside.json().path, '/user/features/f')
    assert.match(inside.json().message, /got an array of 1$/)
    assert.equal((await post(deep)).statusCode, 400)
    assert.equal((await post(`{"__proto__":${deep}}`)).statusCode, 400)
  })

  test('very many names or actions, in one short message and without walking them', async (t) => {
    const post = await client(t, undefined, { config: ROOMY })
    const many = Object.fromEntries(Array.from({ length: 2e5 }, (_, i) => [`n${i}`, 1]))
    for (const body of [
      { ...GOOD, ...many },
      { ...GOOD, user: { id: 'u', features: many } },
      { ...GOOD, candidates: [{ item: 'a', features: many }] },
      { ...GOOD, weights: many },
      { ...GOOD, series: many },
      { ...GOOD, history: [{ ...EVENT, actions: Array(2e5).fill('click') }] },
    ]) {
      const res = await post(body)
      assert.equal(res.statusCode, 400)
      assert.match(res.json().message, /^must have at most \d+ (names|entries), got 2000\d\d$/)
    }
  })

  test('twenty unknown fields', async (t) => {
    const post = await client(t)
    const many = Object.fromEntries(Array.from({ length: 20 }, (_, i) => [`n${i}`, 1]))
    const { path, message } = (await post({ ...GOOD, ...many })).json()
    assert.equal(path, '/n0')
    assert.equal(message, 'is not allowed here')
  })

  test('an unknown action, with the path as the client wrote it', async (t) => {
    const fails = (path: string) => async () => {
      throw new RankError('INVALID_REQUEST', 'unknown action "buy"', { path })
    }
    const pathOf = async (inside: string, body: object) => {
      const post = await client(t, fails(inside))
      return (await post({ ...GOOD, ...body })).json().path
    }
    const both = { history: [EVENT], histories: [[EVENT]] }
    const inside = '/histories/0/0/actions/2'
    assert.equal(await pathOf(inside, { history: [EVENT] }), '/history/0/actions/2')
    assert.equal(await pathOf(inside, { histories: [[EVENT]] }), inside)
    assert.equal(await pathOf(inside, both), '/history/0/actions/2')
    assert.equal(await pathOf('/histories/1/0/actions/2', both), inside)
    assert.equal(await pathOf('/candidates/0', both), '/candidates/0')
  })
})

describe('limits', () => {
  const many = (count: number) => Array(count).fill(EVENT)

  for (const [name, body, path, message] of [
    ['candidates', { ...GOOD, candidates: Array(11).fill('a') }, '/candidates', /10, got 11$/],
    ['history events', { ...GOOD, history: many(21) }, '/history', /20, got 21$/],
    [
      'events of several sources and series together',
      { ...GOOD, history: many(5), histories: [many(8)], series: { s: many(8) } },
      '/histories',
      /^events of all histories and series must be at most 20, got 21$/,
    ],
  ] as const) {
    test(`too many ${name} are 422, before the schema`, async (t) => {
      const post = await client(t)
      const res = await post(body)
      assert.equal(res.statusCode, 422)
      const problem = res.json()
      assert.equal(problem.code, 'LIMIT_EXCEEDED')
      assert.equal(problem.path, path)
      assert.match(problem.message, message)
    })
  }

  test('as many as the limit are ranked', async (t) => {
    const post = await client(t)
    const body = { ...GOOD, candidates: Array(10).fill('a'), history: many(20) }
    assert.equal((await post(body)).statusCode, 200)
  })

  test('a body too large is 413, with the limit and the size', async (t) => {
    const post = await client(t)
    const res = await post({ ...GOOD, candidates: ['x'.repeat(LIMITS.bodyLimitBytes)] })
    assert.equal(res.statusCode, 413)
    const { code, message } = res.json()
    assert.equal(code, 'LIMIT_EXCEEDED')
    assert.match(message, /^body must be at most 65536 bytes, got 655\d\d$/)
  })

  test('a million candidates are refused without a look at them', async (t) => {
    const post = await client(t, undefined, { config: { ...ROOMY, maxCandidates: 20_000 } })
    const res = await post({ ...GOOD, candidates: Array(1e6).fill(0) })
    assert.equal(res.statusCode, 422)
    assert.match(res.json().message, /^candidates must be at most 20000, got 1000000$/)
  })
})

describe('errors of the service', () => {
  for (const [code, status] of Object.entries(STATUS)) {
    if (code === 'NOT_FOUND' || code === 'METHOD_NOT_ALLOWED') continue
    if (code === 'UNSUPPORTED_MEDIA_TYPE' || code === 'INTERNAL') continue
    test(`${code} is ${status}, with its message and path`, async (t) => {
      const post = await client(t, async () => {
        throw new RankError(codeOf(code), 'why', { path: '/where' })
      })
      const res = await post(GOOD)
      assert.equal(res.statusCode, status)
      assert.deepEqual(res.json(), { code, message: 'why', path: '/where' })
    })
  }

  for (const error of [
    new Error('redis://user:secret@host refused'),
    new RankError('INTERNAL', 'secret'),
    Object.assign(new Error('secret'), { statusCode: 503 }),
  ]) {
    test(`an unforeseen ${error.name} is 500 and says no more`, async (t) => {
      const post = await client(t, async () => {
        throw error
      })
      const res = await post(GOOD)
      assert.equal(res.statusCode, 500)
      assert.deepEqual(res.json(), { code: 'INTERNAL', message: 'internal error' })
    })
  }

  function codeOf(name: string): ErrorCode {
    const codes: ErrorCode[] = [
      'INVALID_REQUEST',
      'LIMIT_EXCEEDED',
      'MODEL_NOT_FOUND',
      'CONFLICT',
      'NOT_READY',
      'OVERLOADED',
      'DEADLINE_EXCEEDED',
      'CANCELLED',
      'CONFIG_INVALID',
      'WEIGHTS_INVALID',
      'BUNDLE_INVALID',
      'MODEL_CONTRACT',
      'ENGINE_UNAVAILABLE',
      'WORKER_CRASHED',
      'STORE_UNAVAILABLE',
      'UNAUTHENTICATED',
      'FORBIDDEN',
      'RATE_LIMITED',
      'KV_CORRUPT',
    ]
    const code = codes.find((one) => one === name)
    assert.ok(code !== undefined, name)
    return code
  }
})

describe('what is no request at all', () => {
  test('an unknown route is 404', async (t) => {
    const app = await appOf()
    t.after(() => app.close())
    const res = await app.inject('/v2/rank?token=secret')
    assert.equal(res.statusCode, 404)
    assert.deepEqual(res.json(), {
      code: 'NOT_FOUND',
      message: 'no route GET /v2/rank; /docs lists all',
    })
  })

  test('a wrong method is 405 with the right one', async (t) => {
    const app = await appOf()
    t.after(() => app.close())
    const res = await app.inject('/v1/rank')
    assert.equal(res.statusCode, 405)
    assert.equal(res.headers.allow, 'POST')
    assert.deepEqual(res.json(), {
      code: 'METHOD_NOT_ALLOWED',
      message: '/v1/rank must be called with POST, got GET',
    })
  })

  for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'nonsense']) {
    test(`content-type ${type} is 415`, async (t) => {
      const post = await client(t)
      const res = await post(GOOD, '/v1/rank', { 'content-type': type })
      assert.equal(res.statusCode, 415)
      assert.deepEqual(res.json(), {
        code: 'UNSUPPORTED_MEDIA_TYPE',
        message: `content-type must be application/json or application/msgpack, got "${type}"`,
      })
    })
  }

  test('a malformed URL is 400', async (t) => {
    const app = await appOf()
    t.after(() => app.close())
    const res = await app.inject('/v1/%zz')
    assert.equal(res.statusCode, 400)
    assert.deepEqual(res.json(), { code: 'INVALID_REQUEST', message: 'malformed URL' })
  })

  test('bytes that are no HTTP are 400 in the same form', async (t) => {
    const app = await appOf()
    t.after(() => app.close())
    const { port } = new URL(await app.listen({ port: 0 }))
    const socket = createConnection(Number(port), '127.0.0.1')
    socket.end('\x16\x03\x01 no HTTP\r\n\r\n')
    const chunks: Buffer[] = []
    for await (const chunk of socket) chunks.push(chunk)
    const [head, body = ''] = Buffer.concat(chunks).toString().split('\r\n\r\n')
    assert.match(head ?? '', /^HTTP\/1.1 400 Bad Request/)
    assert.deepEqual(JSON.parse(body), { code: 'INVALID_REQUEST', message: 'malformed HTTP' })
  })
})
