import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { client, LIMITS } from '../test/plain-ranker.js'

const URLS = ['/v1/rank', '/v1/rank/batch', '/v1/prefetch', '/v1/users/u/events']
const CONFIG = { ...LIMITS, bodyLimitBytes: 2 ** 21, maxCandidates: 2e6, maxHistoryEvents: 2e6 }

/** Where an object may stand in a body, `HERE`. */
const PLACES = [
  'HERE',
  '{"user":HERE}',
  '{"user":{"id":"u","features":HERE},"candidates":["a"]}',
  '{"user":{"id":"u"},"candidates":[{"item":"a","features":HERE}]}',
  '{"user":{"id":"u"},"candidates":["a"],"history":[{"item":"a","time":1,"features":HERE}]}',
  '{"user":{"id":"u"},"candidates":["a"],"histories":[[HERE]]}',
  '{"user":{"id":"u"},"candidates":["a"],"series":HERE}',
  '{"user":{"id":"u"},"candidates":["a"],"series":{"s":[HERE]}}',
  '{"user":{"id":"u"},"candidates":["a"],"weights":HERE}',
  '{"requests":[{"user":{"id":"u"},"candidates":["a"],"weights":HERE}]}',
  '{"events":[{"item":"a","time":1,"features":HERE}]}',
  `${'['.repeat(500)}HERE${']'.repeat(500)}`,
]

const POLLUTIONS = [
  '{"__proto__":{"polluted":1}}',
  '{"\\u005f\\u005fproto__":{"polluted":1}}',
  '{"a":1,"__proto__":null}',
  '{"constructor":{"prototype":{"polluted":1}}}',
  '{"con\\u0073tructor":{"proto\\u0074ype":{"polluted":1}}}',
  '{"constructor" : {"a":[],"prototype" : 1}}',
]

/** What objects inherit: none of it may be more or other afterwards. */
function inherited() {
  return [Object.prototype, Array.prototype, Function.prototype].map((one) =>
    Reflect.ownKeys(one).map((key) => [key, Object.getOwnPropertyDescriptor(one, key)?.value]),
  )
}

describe('bodies', () => {
  test('cannot reach a prototype, wherever the key stands', async (t) => {
    const post = await client(t, undefined, { config: CONFIG })
    const before = inherited()
    for (const url of URLS) {
      for (const place of PLACES) {
        for (const pollution of POLLUTIONS) {
          const res = await post(place.replace('HERE', pollution), url)
          assert.equal(res.statusCode, 400, `${url} ${place} ${pollution}`)
          const { code, message } = res.json()
          assert.equal(code, 'INVALID_REQUEST')
          assert.match(message, /^body must not have the keys "__proto__" or "constructor"/)
        }
      }
    }
    assert.deepEqual(inherited(), before)
    assert.equal(Reflect.get({}, 'polluted'), undefined)
  })

  test('may name features after what objects inherit: they are names and no more', async (t) => {
    const post = await client(t)
    const names = ['constructor', 'prototype', 'toString', 'hasOwnProperty', 'valueOf', '__proto']
    const features = Object.fromEntries(names.map((name) => [name, 1]))
    const res = await post({ user: { id: 'u', features }, candidates: [{ item: 'a', features }] })
    assert.equal(res.statusCode, 200)
  })

  test('may be nested as deep as they are long: that is refused, and no stack runs out', async (t) => {
    const post = await client(t, undefined, { config: CONFIG })
    const depth = 2 ** 18
    const deep = [
      `${'['.repeat(depth)}${']'.repeat(depth)}`,
      `${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}`,
    ]
    for (const inner of deep) {
      for (const place of PLACES) {
        const res = await post(
          place.replace('HERE', () => inner),
          '/v1/rank',
        )
        assert.equal(res.statusCode, 400, place)
        assert.ok(res.body.length < 1000)
      }
      for (const url of URLS) assert.equal((await post(inner, url)).statusCode, 400, url)
    }
  })
})
