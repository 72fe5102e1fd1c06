// The gate as clients see it, over real sockets: inject() goes past it, the long way, and is what it is held to.
import assert from 'node:assert/strict'
import { request } from 'node:http'
import { Writable } from 'node:stream'
import { describe, type TestContext, test } from 'node:test'
import { deferred } from '../model/deferred.js'
import { appOf, rankerOf, resultOf } from '../test/plain-ranker.js'
import type { AppOptions } from './app.js'
import { digestOf, SCOPES } from './key-file.js'
import { createLogger } from './log.js'

const RANK = '/v1/rank'
const BODY = JSON.stringify({ user: { id: 'u' }, candidates: ['a', 'b'] })
const TYPE = { 'content-type': 'application/json' }

/** An app whose queue is full of work of the key `busy`, until the test is over. */
async function full(t: TestContext, options: Partial<AppOptions> = {}) {
  const gate = deferred<void>()
  const ranker = {
    ...rankerOf(async (input) => {
      await gate.promise
      return resultOf(input)
    }),
    predictMs: () => 60,
  }
  const app = await appOf(undefined, { ranker: () => ranker, ...options })
  const url = await app.listen({ port: 0, host: '127.0.0.1' })
  const headers = { ...TYPE, 'x-api-key': 'busy' }
  const answers = Array.from({ length: 7 }, () =>
    app.inject({ method: 'POST', url: RANK, payload: BODY, headers }),
  )
  t.after(async () => {
    gate.resolve()
    for (const { statusCode } of await Promise.all(answers)) assert.equal(statusCode, 200)
    await app.close()
  })
  const metrics = async () =>
    (await app.inject({ url: '/metrics', headers: { 'x-api-key': 'busy' } })).body
  // Turn by turn of the event loop: all seven are let in.
  for (let i = 0; i < 1000 && !/^peregrine_inflight_requests 7$/m.test(await metrics()); i++) {
    await new Promise((resolve) => setImmediate(resolve))
  }
  type Headers = { readonly [name: string]: string }
  return {
    app,
    metrics,
    /** Over a socket, and past the gate. */
    post: (asked: Headers = {}, path = RANK) => post(url + path, { ...TYPE, ...asked }),
    inject: (asked: Headers = {}, path = RANK) =>
      app.inject({ method: 'POST', url: path, payload: BODY, headers: { ...TYPE, ...asked } }),
  }
}

type Answer = { readonly status: number; readonly headers: object; readonly body: string }

function post(url: string, headers: { readonly [name: string]: string }): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const call = request(url, { method: 'POST', headers }, (response) => {
      let body = ''
      response.setEncoding('utf8')
      response.on('data', (part) => {
        body += part
      })
      response.on('end', () =>
        resolve({ status: response.statusCode ?? 0, headers: response.headers, body }),
      )
    })
    call.on('error', reject)
    call.end(BODY)
  })
}

/** All but what differs from answer to answer, and what only a socket has. */
function common({ headers, body }: { readonly headers: object; readonly body: string }) {
  const skipped = ['date', 'connection', 'keep-alive', 'x-request-id', 'content-length']
  const kept = Object.entries(headers).filter(([name]) => !skipped.includes(name))
  return { headers: Object.fromEntries(kept), body: JSON.parse(body.replace(/\d+(\.\d+)?/g, '0')) }
}

const key = (name: string, changes: object = {}) => ({
  ...{ name, scopes: SCOPES, share: 1, digest: digestOf(name) },
  ...changes,
})

describe('the gate', () => {
  test('says what the long way says, and counts it once', async (t) => {
    const { post, inject, metrics } = await full(t)
    for (const [path, headers] of [
      [RANK, {}],
      [RANK, { 'x-deadline-ms': '10' }],
      ['/v1/rank/batch', {}],
      ['/v1/retrieve', {}],
      ['/v1/prefetch', {}],
    ] as const) {
      const short = await post(headers, path)
      const long = await inject(headers, path)
      assert.equal(short.status, 429)
      assert.deepEqual(common(short), common({ headers: long.headers, body: long.body }))
    }
    const text = await metrics()
    assert.match(text, /^peregrine_refusals_total\{reason="queue",priority="normal"\} 8$/m)
    assert.match(text, /^peregrine_refusals_total\{reason="queue",priority="low"\} 2$/m)
    assert.match(text, /^peregrine_errors_total\{code="OVERLOADED"\} 10$/m)
    assert.match(text, /^peregrine_requests_total\{route="\/v1\/rank",status="429"\} 4$/m)
    assert.match(text, /^peregrine_request_seconds_count\{route="\/v1\/rank"\} 4$/m)
  })

  test('keeps the caller’s request id', async (t) => {
    const { post } = await full(t)
    const { headers } = await post({ 'x-request-id': 'mine' })
    assert.equal(Reflect.get(headers, 'x-request-id'), 'mine')
  })

  test('leaves to the long way who may not, and what it would complain of', async (t) => {
    const keys = [key('busy'), key('metrics', { scopes: ['metrics'] })]
    const { post } = await full(t, { keys: () => keys })
    for (const [headers, status] of [
      [{}, 401],
      [{ 'x-api-key': 'unknown' }, 401],
      [{ 'x-api-key': 'metrics' }, 403],
      [{ 'x-api-key': 'busy', 'x-priority': 'urgent' }, 400],
      [{ 'x-api-key': 'busy', 'x-deadline-ms': '0' }, 400],
      [{ 'x-api-key': 'busy' }, 429],
      [{ authorization: 'Bearer busy' }, 429],
    ] as const) {
      assert.equal((await post(headers)).status, status, JSON.stringify(headers))
    }
  })

  test('lets pass whose turn it is: another key, a higher priority', async (t) => {
    const keys = [key('busy'), key('quiet')]
    const { post, metrics } = await full(t, { keys: () => keys })
    const passing = [
      post({ 'x-api-key': 'quiet' }),
      post({ 'x-api-key': 'busy', 'x-priority': 'high' }),
    ]
    for (let i = 0; i < 1000 && !/^peregrine_inflight_requests 9$/m.test(await metrics()); i++) {
      await new Promise((resolve) => setImmediate(resolve))
    }
    assert.equal((await post({ 'x-api-key': 'busy' })).status, 429)
    // Answered once the gate in full() opens, after the test.
    t.after(async () => {
      for (const answer of passing) assert.equal((await answer).status, 200)
    })
  })

  test('counts a refusal against the rate of its key', async (t) => {
    const keys = [key('busy'), key('slow', { requestsPerSec: 1, workMsPerSec: 1 })]
    let now = 0
    const { post, inject, metrics } = await full(t, { keys: () => keys, nowMs: () => now })
    const high = { 'x-api-key': 'slow', 'x-priority': 'low' }
    const codes = []
    for (let i = 0; i < 2; i++) codes.push(JSON.parse((await post(high)).body).code)
    now += 1000
    codes.push(JSON.parse((await post(high)).body).code)
    assert.deepEqual(codes, ['OVERLOADED', 'RATE_LIMITED', 'OVERLOADED'])
    assert.equal((await inject(high)).json().code, 'RATE_LIMITED')
    // What has to come slower is no overload, whichever way it went.
    const text = await metrics()
    assert.match(text, /^peregrine_refusals_total\{reason="queue",priority="low"\} 2$/m)
    assert.match(text, /^peregrine_errors_total\{code="RATE_LIMITED"\} 2$/m)
  })

  test('logs refusals by the second, not one by one', async (t) => {
    const lines: string[] = []
    const stream = new Writable({
      write(chunk, _, done) {
        lines.push(...String(chunk).trim().split('\n'))
        done()
      },
    })
    const { app, post } = await full(t, { logger: createLogger('info', stream) })
    for (let i = 0; i < 3; i++) await post()
    await app.close()
    const refused = lines.map((line) => JSON.parse(line)).filter(({ msg }) => /refused/.test(msg))
    assert.equal(
      refused.reduce((sum, { count }) => sum + count, 0),
      3,
    )
    const { method, route, status, code, key: name } = refused[0]
    assert.deepEqual(
      { method, route, status, code, name },
      { method: 'POST', route: RANK, status: 429, code: 'OVERLOADED', name: '-' },
    )
  })
})
