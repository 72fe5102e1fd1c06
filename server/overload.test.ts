// Overload as clients see it: real sockets where it matters, rankings that wait for a gate.
import assert from 'node:assert/strict'
import { request as httpRequest } from 'node:http'
import { connect } from 'node:net'
import { describe, type TestContext, test } from 'node:test'
import type { Ranker, RankOptions } from '../falcon/types.js'
import { deferred } from '../model/deferred.js'
import { appOf, LIMITS, rankerOf, resultOf } from '../test/plain-ranker.js'
import type { AppOptions } from './app.js'
import { digestOf, SCOPES } from './key-file.js'

const RANK = '/v1/rank'
const requestOf = (id: string) => ({ user: { id }, candidates: ['a', 'b'] })

/** A ranker of three requests at a time that takes each ranking for `workMs` and waits for `open`. */
function gated(workMs = 60) {
  const gate = deferred<void>()
  const started: string[] = []
  const options: RankOptions[] = []
  const waiting: { count: number; reached: () => void }[] = []
  const begin = async (id: string) => {
    started.push(id)
    for (const { count, reached } of waiting) if (started.length >= count) reached()
    await gate.promise
  }
  const ranker: Ranker = {
    ...rankerOf(async (input, rankOptions) => {
      options.push(rankOptions)
      await begin(input.user.id)
      return resultOf(input)
    }),
    prefetch: async (input) => ({
      kv: begin(input.user.id).then(() => ({
        ...{ state: 'miss', reusedTokens: 0, prefilledTokens: 1 },
      })) as never,
      warnings: [],
    }),
    predictMs: () => workMs,
    predictPrefetchMs: () => workMs,
  }
  return {
    ranker,
    started,
    options,
    open: () => gate.resolve(),
    /** Resolves when so many have begun. */
    begun: (count: number) =>
      new Promise<void>((reached) => {
        waiting.push({ count, reached })
        if (started.length >= count) reached()
      }),
  }
}

async function serving(
  t: TestContext,
  ranker: Ranker,
  config: Partial<typeof LIMITS> = {},
  keys?: AppOptions['keys'],
) {
  const app = await appOf(undefined, {
    ranker: () => ranker,
    config: { ...LIMITS, ...config },
    ...(keys !== undefined && { keys }),
  })
  t.after(() => app.close())
  const post = (body: unknown, url = RANK, headers: Record<string, string> = {}) =>
    app.inject({
      method: 'POST',
      url,
      payload: typeof body === 'string' ? body : JSON.stringify(body),
      headers: { 'content-type': 'application/json', ...headers },
    })
  return {
    app,
    post,
    /** Waits, turn by turn of the event loop, until a line is in the metrics. */
    async metric(line: string) {
      for (let i = 0; i < 1000; i++) {
        const { body } = await app.inject({ url: '/metrics', headers: { 'x-api-key': 'quiet' } })
        if (body.split('\n').includes(line)) return
        await new Promise((resolve) => setImmediate(resolve))
      }
      assert.fail(`${line} did not come in ${(await app.inject('/metrics')).body}`)
    },
  }
}

/** Fills the engine's three places and 120 ms of the queue, which holds 100 at two runs at a time. */
async function full(t: TestContext, config: Partial<typeof LIMITS> = {}) {
  const { ranker, open, ...gate } = gated()
  const server = await serving(t, ranker, config)
  const answers = ['1', '2', '3', '4', '5', '6', '7'].map((id) => server.post(requestOf(id)))
  await server.metric('peregrine_queue_length{priority="normal"} 4')
  return { ...server, ...gate, answers, open }
}

describe('overload', () => {
  test('is refused before the body is read, with the wait as Retry-After, and ends with it', async (t) => {
    const { post, answers, started, open, metric } = await full(t)
    const refused = await post('this is no JSON')
    assert.equal(refused.statusCode, 429)
    assert.equal(refused.headers['retry-after'], '1')
    const { code, message, retryAfterMs } = refused.json()
    assert.equal(code, 'OVERLOADED')
    assert.match(
      message,
      /^the queue holds at most 100 ms of work before a normal request, got 1\d\d$/,
    )
    assert.ok(retryAfterMs > 100 && retryAfterMs < 200, String(retryAfterMs))
    assert.deepEqual(started, ['1', '2', '3'])
    await metric('peregrine_refusals_total{reason="queue",priority="normal"} 1')
    await metric('peregrine_queue_work_seconds{priority="normal"} 0.24')
    await metric('peregrine_errors_total{code="OVERLOADED"} 1')
    open()
    for (const answer of answers) assert.equal((await answer).statusCode, 200)
    assert.deepEqual(started, ['1', '2', '3', '4', '5', '6', '7'])
    assert.equal((await post(requestOf('8'))).statusCode, 200)
    await metric('peregrine_queue_length{priority="normal"} 0')
    await metric('peregrine_queue_wait_seconds_count{priority="normal"} 8')
    await metric('peregrine_work_predicted_seconds_total{key="-"} 0.48')
    await metric('peregrine_inflight_requests 0')
  })

  test('leaves a kept-alive connection in order, whatever was in the body', async (t) => {
    const { app, answers, open } = await full(t)
    const { port } = new URL(await app.listen({ port: 0, host: '127.0.0.1' }))
    const socket = connect(Number(port), '127.0.0.1')
    t.after(() => socket.destroy())
    const body = `"${'x'.repeat(60_000)}"`
    const refused = `POST ${RANK} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`
    socket.write(`${refused}${refused}GET /livez HTTP/1.1\r\nhost: x\r\n\r\n`)
    let text = ''
    for await (const bytes of socket) {
      text += bytes
      if (text.includes('{"status":"ok"}')) break
    }
    const statuses = [...text.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status]) => status)
    assert.deepEqual(statuses, ['429', '429', '200'])
    open()
    await Promise.all(answers)
  })

  test('lets high ones in, and serves them first; refuses low ones', async (t) => {
    const { post, answers, started, open, begun, metric } = await full(t)
    const high = post(requestOf('high'), RANK, { 'x-priority': 'high' })
    await metric('peregrine_queue_length{priority="high"} 1')
    const low = await post(requestOf('low'), RANK, { 'x-priority': 'low' })
    assert.equal(low.statusCode, 429)
    open()
    await begun(4)
    assert.equal(started[3], 'high')
    assert.equal((await high).statusCode, 200)
    await Promise.all(answers)
  })

  test('refuses what would pass its deadline, by field or header, and tries what is in time', async (t) => {
    const { post, answers, open, options, metric } = await full(t, { maxQueueMs: 1000 })
    const byField = await post({ ...requestOf('x'), deadlineMs: 150 })
    const byHeader = await post('never read', RANK, { 'x-deadline-ms': '90.5' })
    const shorter = await post({ ...requestOf('x'), deadlineMs: 60_000 }, RANK, {
      'x-deadline-ms': '150',
    })
    for (const res of [byField, byHeader, shorter]) {
      assert.equal(res.statusCode, 429, res.body)
      assert.match(
        res.json().message,
        /^deadlineMs \S+ cannot be met: \S+ ms to wait, \S+ to compute$/,
      )
      assert.ok(res.json().retryAfterMs >= 1)
    }
    await metric('peregrine_refusals_total{reason="deadline",priority="normal"} 3')
    const inTime = post({ ...requestOf('8'), deadlineMs: 60_000 }, RANK, {
      'x-deadline-ms': '50000',
    })
    await metric('peregrine_queue_length{priority="normal"} 5')
    open()
    const res = await inTime
    assert.equal(res.statusCode, 200)
    const { deadlineMs, waitedMs = 0 } = options.at(-1) ?? {}
    assert.equal(deadlineMs, 50_000)
    assert.ok(waitedMs > 0)
    assert.ok(res.json().timings.queueMs >= waitedMs - 0.001)
    await Promise.all(answers)
  })

  test('headers that say nothing sensible are 400', async (t) => {
    const { post } = await serving(t, rankerOf())
    for (const [name, value] of [
      ['x-priority', 'urgent'],
      ['x-deadline-ms', '0'],
      ['x-deadline-ms', '1e3'],
      ['x-deadline-ms', '60001'],
    ] as const) {
      const res = await post(requestOf('u'), RANK, { [name]: value })
      assert.equal(res.statusCode, 400)
      assert.match(res.json().message, new RegExp(`^${name} must be .*, got "${value}"$`))
    }
  })

  test('a batch is let in whole or not at all, and its rankings wait one by one', async (t) => {
    const { ranker, started, open, begun } = gated()
    const { post, metric } = await serving(t, ranker)
    const users = ['1', '2', '3', '4']
    const batch = (ids: readonly string[]) =>
      post({ requests: ids.map(requestOf) }, '/v1/rank/batch')
    const [first, second] = [batch(users), batch(users)]
    await begun(3)
    await metric('peregrine_queue_length{priority="normal"} 5')
    assert.equal((await batch(users)).statusCode, 429)
    assert.equal(started.length, 3)
    open()
    for (const answer of [first, second]) {
      const { results } = (await answer).json()
      assert.deepEqual(
        results.map((result: { items: unknown[] }) => result.items.length),
        [2, 2, 2, 2],
      )
    }
  })

  test('a prefetch waits behind the rankings that come after it', async (t) => {
    const { ranker, started, open } = gated()
    const { post, metric } = await serving(t, ranker)
    const busy = ['1', '2', '3'].map((id) => post(requestOf(id)))
    await metric('peregrine_running_requests 3')
    const prefetch = post({ user: { id: 'ahead' } }, '/v1/prefetch')
    await metric('peregrine_queue_length{priority="low"} 1')
    const later = ['4', '5'].map((id) => post(requestOf(id)))
    await metric('peregrine_queue_length{priority="normal"} 2')
    open()
    assert.equal((await prefetch).statusCode, 202)
    await Promise.all([...busy, ...later])
    assert.deepEqual(started, ['1', '2', '3', '4', '5', 'ahead'])
  })

  test('a client that leaves the queue is never ranked, and counted as CANCELLED', async (t) => {
    const { app, answers, started, open, metric } = await full(t, { maxQueueMs: 1000 })
    const url = `${await app.listen({ port: 0 })}${RANK}`
    const headers = { 'content-type': 'application/json' }
    const leaving = httpRequest(url, { method: 'POST', headers })
    leaving.on('error', () => {})
    leaving.end(JSON.stringify(requestOf('left')))
    await metric('peregrine_queue_length{priority="normal"} 5')
    leaving.destroy()
    await metric('peregrine_queue_length{priority="normal"} 4')
    await metric('peregrine_requests_total{route="/v1/rank",status="499"} 1')
    open()
    await Promise.all(answers)
    assert.ok(!started.includes('left'))
    await metric('peregrine_inflight_requests 0')
  })

  test('callers are kept apart: who floods waits behind itself', async (t) => {
    const { ranker, open } = gated()
    const keys = ['flood', 'quiet'].map((name) => {
      return { name, scopes: SCOPES, share: 1, digest: digestOf(name) }
    })
    const { app, metric } = await serving(t, ranker, {}, () => keys)
    const post = (key: string) =>
      app.inject({
        method: 'POST',
        url: RANK,
        payload: requestOf(key),
        headers: { 'x-api-key': key },
      })
    const flood = Array.from({ length: 20 }, () => post('flood'))
    const refused = Promise.all(flood).then((all) =>
      all.filter(({ statusCode }) => statusCode === 429),
    )
    await metric('peregrine_refusals_total{reason="queue",priority="normal"} 13')
    const quiet = post('quiet')
    open()
    assert.equal((await quiet).statusCode, 200)
    assert.equal((await refused).length, 13)
    const { body } = await app.inject({ url: '/metrics', headers: { 'x-api-key': 'quiet' } })
    assert.match(body, /^peregrine_work_measured_seconds_total\{key="quiet"\} /m)
  })
})

describe('memory for bodies', () => {
  test('is taken before they are read, by their length or else the longest, and given back', async (t) => {
    const { ranker, open } = gated()
    const limits = { bodyLimitBytes: 4000, bodyBudgetBytes: 5000 }
    const { app, post, metric } = await serving(t, ranker, limits)
    const large = JSON.stringify(requestOf('u')).padEnd(4000, ' ')
    const first = post(large)
    await metric('peregrine_running_requests 1')
    const refused = await post(large)
    assert.equal(refused.statusCode, 429)
    assert.deepEqual(refused.json(), {
      code: 'OVERLOADED',
      message: 'bodies may take 5000 bytes at once, got 4000 more to 4000',
      retryAfterMs: 1000,
    })
    const url = `${await app.listen({ port: 0 })}${RANK}`
    const chunked = httpRequest(url, { method: 'POST' })
    const status = new Promise((resolve, reject) => {
      chunked.on('response', (response) => resolve(response.resume().statusCode))
      chunked.on('error', reject)
    })
    chunked.flushHeaders()
    assert.equal(await status, 429, 'of unknown length')
    chunked.destroy()
    assert.equal((await post(requestOf('u').user)).statusCode, 400, 'a small one has room')
    open()
    assert.equal((await first).statusCode, 200)
    assert.equal((await post(large)).statusCode, 200)
  })
})
