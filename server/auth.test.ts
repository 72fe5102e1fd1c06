import assert from 'node:assert/strict'
import { describe, type TestContext, test } from 'node:test'
import { appOf, resultOf } from '../test/plain-ranker.js'
import { ANYONE, type ApiKey } from './auth.js'
import { digestOf, SCOPES, type Scope, type StoredKey } from './key-file.js'
import { createLogger } from './log.js'

const GOOD = JSON.stringify({ user: { id: 'u' }, candidates: ['a', 'b'] })

function key(name: string, scopes: readonly Scope[], rest: Partial<StoredKey> = {}): StoredKey {
  return { name, scopes, share: 1, digest: digestOf(`secret-of-${name}`), ...rest }
}

const KEYS = [key('web', ['rank']), key('prometheus', ['metrics']), key('ops', ['admin'])]

/** Calls an app that asks for keys, as `name`; a POST where there is a body. */
async function guarded(t: TestContext, keys: readonly StoredKey[] = KEYS, options = {}) {
  const app = await appOf(undefined, { keys: () => keys, ...options })
  t.after(() => app.close())
  const call = (url: string, headers: Record<string, string> = {}, payload?: string) =>
    app.inject({
      method: payload === undefined ? 'GET' : 'POST',
      url,
      headers: { ...(payload !== undefined && { 'content-type': 'application/json' }), ...headers },
      ...(payload !== undefined && { payload }),
    })
  const as = (name: string, url: string, payload?: string) =>
    call(url, { authorization: `Bearer secret-of-${name}` }, payload)
  return { app, call, as }
}

describe('API keys', () => {
  test('are taken from Authorization and from x-api-key', async (t) => {
    const { call } = await guarded(t)
    for (const headers of [
      { authorization: 'Bearer secret-of-web' },
      { authorization: 'bearer  secret-of-web' },
      { 'x-api-key': 'secret-of-web' },
      // A gateway's own Authorization stands beside it.
      { authorization: 'Basic dTpw', 'x-api-key': 'secret-of-web' },
    ]) {
      assert.equal((await call('/v1/rank', headers, GOOD)).statusCode, 200, JSON.stringify(headers))
    }
  })

  test('without or with a wrong one the answer is 401, and says how', async (t) => {
    const { call } = await guarded(t)
    const expected = 'needs an API key as "Authorization: Bearer …" or "x-api-key: …", got '
    for (const [headers, got] of [
      [{}, 'none'],
      [{ authorization: 'secret-of-web' }, 'none'],
      [{ authorization: 'Basic secret-of-web' }, 'none'],
      [{ authorization: 'Bearer secret-of-weB' }, 'one that is not known'],
      [{ authorization: 'Bearer secret-of-web', 'x-api-key': 'x' }, 'one that is not known'],
      [{ 'x-api-key': '' }, 'one that is not known'],
      [{ 'x-api-key': digestOf('secret-of-web').toString('hex') }, 'one that is not known'],
    ] as const) {
      const res = await call('/v1/rank', headers, GOOD)
      assert.equal(res.statusCode, 401)
      assert.equal(res.headers['www-authenticate'], 'Bearer')
      assert.deepEqual(res.json(), { code: 'UNAUTHENTICATED', message: expected + got })
    }
  })

  test('open what their scopes name and nothing else', async (t) => {
    const { as } = await guarded(t)
    const status = async (name: string, url: string, payload?: string) =>
      (await as(name, url, payload)).statusCode
    assert.equal(await status('web', '/v1/rank', GOOD), 200)
    assert.equal(await status('web', '/v1/models'), 200)
    assert.equal(await status('web', '/metrics'), 403)
    assert.equal(await status('prometheus', '/metrics'), 200)
    assert.equal(await status('prometheus', '/v1/users/u'), 403)
    const refused = await as('ops', '/v1/rank', GOOD)
    assert.equal(refused.statusCode, 403)
    assert.deepEqual(refused.json(), {
      code: 'FORBIDDEN',
      message: 'needs an API key of scope rank, got one of admin',
    })
  })

  test('are not asked for by the probes, the docs and the page, but before any body is read', async (t) => {
    const { call } = await guarded(t)
    for (const url of ['/livez', '/readyz', '/', '/docs/json', '/playground/main.js']) {
      assert.equal((await call(url)).statusCode, 200, url)
    }
    for (const url of ['/playground/samples', '/v1/models', '/metrics', '/nowhere', '/V1/models']) {
      assert.equal((await call(url)).statusCode, 401, url)
    }
    for (const url of ['/v1/rank', '/livez', '/nowhere']) {
      assert.equal((await call(url, {}, '{broken')).statusCode, 401, url)
    }
    assert.equal((await call('/v1/%72ank', {}, GOOD)).statusCode, 401)
  })

  test('may change while serving: what went is refused, what came is served', async (t) => {
    let keys: readonly StoredKey[] = KEYS
    const { as } = await guarded(t, KEYS, { keys: () => keys })
    assert.equal((await as('web', '/v1/models')).statusCode, 200)
    keys = [key('new', ['rank'])]
    assert.equal((await as('web', '/v1/models')).statusCode, 401)
    assert.equal((await as('new', '/v1/models')).statusCode, 200)
  })

  test('are on the request, by name in the log, and their secrets nowhere', async (t) => {
    const lines: string[] = []
    const logger = createLogger('trace', { write: (line) => void lines.push(line) })
    const { app, as } = await guarded(t, [key('web', SCOPES, { share: 2 })], { logger })
    const seen: ApiKey[] = []
    app.addHook('preHandler', async (request) => void seen.push(request.apiKey))
    await as('web', '/v1/rank', GOOD)
    await as('nobody', '/v1/rank', GOOD)
    const metrics = (await as('web', '/metrics')).body
    const [first, second] = lines.map((line) => JSON.parse(line))
    assert.equal(first.key, 'web')
    assert.deepEqual([second.key, second.code], [undefined, 'UNAUTHENTICATED'])
    assert.match(metrics, /peregrine_errors_total\{code="UNAUTHENTICATED"\} 1/)
    assert.doesNotMatch(lines.join('') + metrics, /secret-of/)
    assert.deepEqual([seen[0]?.name, seen[0]?.share], ['web', 2])
  })

  test('where none are asked for everybody may do everything', async (t) => {
    const app = await appOf(async (input) => resultOf(input))
    t.after(() => app.close())
    const seen: ApiKey[] = []
    app.addHook('preHandler', async (request) => void seen.push(request.apiKey))
    assert.equal((await app.inject('/metrics')).statusCode, 200)
    assert.deepEqual(seen, [ANYONE])
    assert.deepEqual(ANYONE.scopes, SCOPES)
  })
})

describe('a key’s rate', () => {
  test('is a bucket of one second, apart from that of every other key', async (t) => {
    let nowMs = 0
    const { as } = await guarded(
      t,
      [key('slow', ['rank'], { requestsPerSec: 2 }), key('free', ['rank'])],
      { nowMs: () => nowMs },
    )
    const statuses = async (name: string, count: number) => {
      const found: number[] = []
      for (let i = 0; i < count; i++) found.push((await as(name, '/v1/models')).statusCode)
      return found
    }
    assert.deepEqual(await statuses('slow', 3), [200, 200, 429])
    assert.deepEqual(await statuses('free', 5), [200, 200, 200, 200, 200])
    nowMs = 500
    assert.deepEqual(await statuses('slow', 2), [200, 429])
    nowMs = 60_000
    assert.deepEqual(await statuses('slow', 3), [200, 200, 429])
  })

  test('says in 429 when to come back, and leaves what needs no key alone', async (t) => {
    const { as } = await guarded(t, [key('slow', ['rank'], { requestsPerSec: 0.25 })], {
      nowMs: () => 0,
    })
    assert.equal((await as('slow', '/v1/models')).statusCode, 200)
    const res = await as('slow', '/v1/rank', GOOD)
    assert.equal(res.statusCode, 429)
    assert.equal(res.headers['retry-after'], '4')
    assert.deepEqual(res.json(), {
      code: 'RATE_LIMITED',
      message: 'this API key has 0.25 requests per second, got more',
    })
    assert.equal((await as('slow', '/livez')).statusCode, 200)
  })
})
