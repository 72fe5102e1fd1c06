import assert from 'node:assert/strict'
import { describe, type TestContext, test } from 'node:test'
import { appOf } from '../test/plain-ranker.js'

const GOOD = JSON.stringify({ user: { id: 'u' }, candidates: ['a'] })
const JSON_TYPE = { 'content-type': 'application/json' }

async function appFor(t: TestContext, corsOrigins: readonly string[] = []) {
  const app = await appOf(undefined, { corsOrigins })
  t.after(() => app.close())
  return app
}

describe('every answer', () => {
  test('tells browsers to load nothing, guess nothing and keep nothing, errors too', async (t) => {
    const app = await appFor(t)
    for (const [method, url] of [
      ['POST', '/v1/rank'],
      ['GET', '/v1/users/u'],
      ['POST', '/nowhere'],
      ['GET', '/v1/rank'],
    ] as const) {
      const payload = method === 'POST' ? { payload: GOOD, headers: JSON_TYPE } : {}
      const { headers } = await app.inject({ method, url, ...payload })
      const policy = "default-src 'none';frame-ancestors 'none'"
      assert.equal(headers['content-security-policy'], policy, url)
      assert.equal(headers['x-content-type-options'], 'nosniff')
      assert.equal(headers['referrer-policy'], 'no-referrer')
      assert.equal(headers['cross-origin-resource-policy'], 'same-origin')
      assert.equal(headers['cache-control'], 'no-store')
      assert.equal(headers['x-powered-by'], undefined)
      assert.equal(headers['strict-transport-security'], undefined, 'means nothing without TLS')
    }
  })

  test('of the page and of /docs has the policy of its own', async (t) => {
    const app = await appFor(t)
    for (const url of ['/', '/docs/']) {
      const policy = String((await app.inject(url)).headers['content-security-policy'])
      assert.match(policy, /^default-src 'none'; script-src 'self'; style-src 'self'/)
    }
  })
})

describe('pages of other origins', () => {
  const preflight = (origin: string) => ({
    method: 'OPTIONS' as const,
    url: '/v1/rank',
    headers: {
      origin,
      'access-control-request-method': 'POST',
      'access-control-request-headers': 'content-type,x-api-key',
    },
  })

  test('may not call by default', async (t) => {
    const app = await appFor(t)
    const refused = await app.inject(preflight('https://shop.example'))
    assert.equal(refused.statusCode, 405)
    const headers = { ...JSON_TYPE, origin: 'https://shop.example' }
    const answer = await app.inject({ method: 'POST', url: '/v1/rank', payload: GOOD, headers })
    for (const res of [refused, answer]) {
      assert.equal(res.headers['access-control-allow-origin'], undefined)
    }
  })

  test('may where they are named, also past the keys with their preflight', async (t) => {
    const app = await appOf(undefined, { corsOrigins: ['https://shop.example'], keys: () => [] })
    t.after(() => app.close())
    const { statusCode, headers } = await app.inject(preflight('https://shop.example'))
    assert.equal(statusCode, 204)
    assert.equal(headers['access-control-allow-origin'], 'https://shop.example')
    assert.equal(headers['access-control-allow-headers'], 'content-type,x-api-key')
    assert.equal(headers['access-control-allow-credentials'], undefined)
    const other = await app.inject(preflight('https://evil.example'))
    assert.equal(other.headers['access-control-allow-origin'], undefined)
    const real = { method: 'POST', url: '/v1/rank', payload: GOOD } as const
    const asked = { ...JSON_TYPE, origin: 'https://shop.example' }
    const refused = await app.inject({ ...real, headers: asked })
    assert.equal(refused.statusCode, 401)
    assert.equal(refused.headers['access-control-allow-origin'], 'https://shop.example')
  })
})
