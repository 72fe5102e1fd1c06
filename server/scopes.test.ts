import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { type Access, accessOf } from './scopes.js'

const EXPECTED: readonly (readonly [Access, ...string[]])[] = [
  ['probe', 'GET /livez', 'HEAD /livez', 'GET /readyz', 'GET /v2/health/ready'],
  ['open', 'GET /', 'GET /docs', 'GET /docs/json', 'GET /docs/static/*', 'GET /playground/:file'],
  ['metrics', 'GET /metrics', 'HEAD /metrics'],
  ['rank', 'POST /v1/rank', 'POST /v1/rank/batch', 'POST /v1/prefetch', 'GET /v1/users/:id'],
  ['rank', 'DELETE /v1/users/:id', 'POST /v1/users/:id/events', 'POST /v1/retrieve'],
  ['rank', 'GET /v1/models', 'GET /playground/samples/:name'],
  ['rank', 'GET /v2', 'GET /v2/models/:name', 'POST /v2/models/:name/infer'],
  ['admin', 'POST /v1/models/:name/load', 'DELETE /v1/models/:name', 'GET /v1/admin/anything'],
  ['admin', 'POST /v2/repository/models/:name/unload', 'POST /v2/models/:name/inferno'],
  ['admin', 'GET /debug', 'POST /livez', 'POST /metrics', 'POST /', 'GET /livez/x', 'GET /v1x'],
]

describe('accessOf', () => {
  for (const [access, ...routes] of EXPECTED) {
    test(`${routes.join(', ')}: ${access}`, () => {
      for (const route of routes) {
        const [method = '', url = ''] = route.split(' ')
        assert.equal(accessOf(method, url), access, route)
      }
    })
  }
})
