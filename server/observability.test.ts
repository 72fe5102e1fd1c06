import assert from 'node:assert/strict'
import { request as httpRequest } from 'node:http'
import { describe, test } from 'node:test'
import { Registry } from 'prom-client'
import type { RankerStats } from '../falcon/types.js'
import { deferred } from '../model/deferred.js'
import type { Engine, EngineStats } from '../model/engine/engine.js'
import { RankError } from '../model/errors.js'
import { appOf, client, rankerOf, resultOf } from '../test/plain-ranker.js'
import { createLogger } from './log.js'

const GOOD = { user: { id: 'u' }, candidates: ['a', 'b'] }

/** A logger and the lines that it wrote. */
function captured() {
  const lines: string[] = []
  const logger = createLogger('debug', { write: (line) => void lines.push(line) })
  return { logger, lines, parsed: () => lines.map((line) => JSON.parse(line)) }
}

describe('request ids', () => {
  test('are taken over when sane and answered, also with errors', async (t) => {
    const post = await client(t)
    for (const [body, url] of [
      [GOOD, '/v1/rank'],
      ['{', '/v1/rank'],
      [GOOD, '/nowhere'],
    ] as const) {
      const res = await post(body, url, { 'x-request-id': 'trace-7/b' })
      assert.equal(res.headers['x-request-id'], 'trace-7/b')
    }
  })

  for (const bad of ['', 'x'.repeat(129), 'two words', 'caf\u00e9']) {
    test(`are made up in place of ${JSON.stringify(bad.slice(0, 12))}`, async (t) => {
      const post = await client(t)
      const res = await post(GOOD, '/v1/rank', { 'x-request-id': bad })
      assert.match(String(res.headers['x-request-id']), /^[0-9a-f-]{36}$/)
    })
  }
})

describe('logs', () => {
  test('have one line per request, with what happened', async (t) => {
    const { logger, parsed } = captured()
    const post = await client(t, undefined, { logger })
    await post(GOOD, '/v1/rank', { 'x-request-id': 'r1' })
    await post({ requests: [GOOD, 5] }, '/v1/rank/batch', { 'x-request-id': 'r2' })
    await post({}, '/v1/rank', { 'x-request-id': 'r3' })
    const lines = parsed().map(({ time, ms, ...line }) => {
      assert.ok(ms >= 0 && !Number.isNaN(Date.parse(time)))
      return line
    })
    const common = { level: 'info', method: 'POST', msg: 'request' }
    assert.deepEqual(lines, [
      {
        ...common,
        reqId: 'r1',
        route: '/v1/rank',
        status: 200,
        requests: 1,
        failed: 0,
        candidates: 2,
        historyTokens: 10,
        kv: 'stale',
      },
      {
        ...common,
        reqId: 'r2',
        route: '/v1/rank/batch',
        status: 200,
        requests: 2,
        failed: 1,
        candidates: 2,
        historyTokens: 10,
      },
      { ...common, reqId: 'r3', route: '/v1/rank', status: 400, code: 'INVALID_REQUEST' },
    ])
  })

  test('probes are logged at debug only', async (t) => {
    const { logger, parsed } = captured()
    const app = await appOf(undefined, { logger })
    t.after(() => app.close())
    for (const url of ['/livez', '/readyz', '/metrics']) await app.inject(url)
    assert.deepEqual(
      parsed().map(({ level }) => level),
      ['debug', 'debug', 'debug'],
    )
  })

  test('and metrics hold nothing that a user sent, whatever goes wrong', async (t) => {
    const { logger, lines } = captured()
    let fail: unknown
    const registry = new Registry()
    const post = await client(
      t,
      async (input) => {
        if (fail !== undefined) throw fail
        return resultOf(input)
      },
      { logger, registry },
    )
    const event = { item: 'SECRET', time: 5, actions: ['SECRET'], features: { SECRET: 'SECRET' } }
    const full = {
      user: { id: 'SECRET', features: { SECRET: 1 } },
      history: [event],
      series: { SECRET: [{ value: 'SECRET', time: 1 }] },
      candidates: ['SECRET'],
    }
    const bodies = [
      full,
      { ...full, SECRET: 1 },
      { ...full, weights: { SECRET: 1 } },
      { ...full, model: 'SECRET' },
      { ...full, history: [{ ...event, time: 'SECRET' }] },
      '{"SECRET": SECRET}',
      '{"__proto__": "SECRET"}',
      { requests: [full, { SECRET: 1 }] },
      { events: [event] },
      { events: [event], idempotencyKey: 'SECRET' },
      { user: { id: 'SECRET' }, history: [event], wait: true },
    ]
    const urls = [
      '/v1/rank',
      '/v1/rank/batch',
      '/v1/prefetch',
      '/v1/users/SECRET/events',
      '/v1/users/SECRET',
      '/v1/rank?user=SECRET',
      '/SECRET',
      '/SECRET%zz',
    ]
    for (const error of [undefined, new RankError('INVALID_REQUEST', 'unknown action "SECRET"')]) {
      fail = error
      for (const body of bodies)
        for (const url of urls) {
          await post(body, url, { 'x-api-key': 'SECRET', 'idempotency-key': 'SECRET' })
        }
    }
    assert.ok(lines.length >= bodies.length * 4 * 2)
    assert.doesNotMatch(lines.join(''), /SECRET/)
    assert.doesNotMatch(await registry.metrics(), /SECRET/)
  })

  test('an unforeseen error is logged once, with its stack', async (t) => {
    const { logger, parsed } = captured()
    const post = await client(
      t,
      async () => {
        throw new TypeError('boom')
      },
      { logger },
    )
    await post(GOOD)
    const errors = parsed().filter(({ level }) => level === 'error')
    assert.equal(errors.length, 1)
    assert.match(errors[0].err.stack, /TypeError: boom\n {4}at /)
  })
})

describe('/metrics', () => {
  test('counts what a request did', async (t) => {
    const app = await appOf(async (input) =>
      resultOf(input, { warnings: [{ code: 'UNKNOWN_ITEM', message: 'm', count: 2 }] }),
    )
    t.after(() => app.close())
    const post = (url: string, payload: object) => app.inject({ method: 'POST', url, payload })
    await post('/v1/rank', GOOD)
    await post('/v1/rank/batch', { requests: [GOOD, 5] })
    await post('/v1/rank', {})
    await app.inject('/nowhere/u1')
    const res = await app.inject('/metrics')
    assert.match(String(res.headers['content-type']), /^text\/plain; version=0.0.4/)
    for (const line of [
      'peregrine_requests_total{route="/v1/rank",status="200"} 1',
      'peregrine_requests_total{route="/v1/rank",status="400"} 1',
      'peregrine_requests_total{route="/v1/rank/batch",status="200"} 1',
      'peregrine_requests_total{route="none",status="404"} 1',
      'peregrine_request_seconds_count{route="/v1/rank"} 2',
      'peregrine_stage_seconds_count{stage="parse"} 3',
      'peregrine_stage_seconds_count{stage="sequence"} 2',
      'peregrine_stage_seconds_bucket{le="0.00025",stage="score"} 0',
      'peregrine_stage_seconds_sum{stage="score"} 0.006',
      'peregrine_stage_seconds_count{stage="heads"} 2',
      'peregrine_stage_seconds_count{stage="history"} 2',
      'peregrine_stage_seconds_count{stage="serialize"} 2',
      'peregrine_kv_lookups_total{model="toy@abc123",state="stale",tier="2"} 2',
      'peregrine_kv_decisions_total{model="toy@abc123",decision="append"} 2',
      'peregrine_kv_prediction_ratio_bucket{le="1.2",model="toy@abc123",decision="append"} 0',
      'peregrine_kv_prediction_ratio_bucket{le="1.5",model="toy@abc123",decision="append"} 2',
      'peregrine_kv_prediction_ratio_sum{model="toy@abc123",decision="append"} 2.5',
      'peregrine_tokens_prefilled_total{model="toy@abc123"} 4',
      'peregrine_tokens_reused_total{model="toy@abc123"} 16',
      'peregrine_candidates_total{model="toy@abc123"} 4',
      'peregrine_candidates_per_request_count 2',
      'peregrine_micro_batches_total{model="toy@abc123"} 2',
      'peregrine_warnings_total{code="UNKNOWN_ITEM"} 4',
      'peregrine_errors_total{code="INVALID_REQUEST"} 2',
      'peregrine_errors_total{code="NOT_FOUND"} 1',
      'peregrine_engine_pending_jobs{model="toy@abc123"} 3',
      'peregrine_engine_workers{model="toy@abc123"} 2',
      'peregrine_engine_restarts_total{model="toy@abc123"} 1',
      'peregrine_kv_entries{model="toy@abc123"} 5',
      'peregrine_kv_bytes{model="toy@abc123"} 600',
      'peregrine_kv_max_bytes{model="toy@abc123"} 1000',
      'peregrine_kv_evictions_total{model="toy@abc123"} 7',
      'peregrine_inflight_requests 0',
      'peregrine_model_info{name="toy",version="abc123",precision="fp32",engine="plain"} 1',
    ]) {
      assert.ok(res.body.split('\n').includes(line), `${line}\nnot in\n${res.body}`)
    }
    assert.doesNotMatch(
      res.body,
      /^peregrine_(prefill|kv_break|kv_fetch|kv_gpu|kv_host|kv_spills|kv_restores|one_pass)/m,
    )
    const again = await app.inject('/metrics')
    assert.match(
      again.body,
      /^peregrine_kv_evictions_total\{model="toy@abc123"\} 7$/m,
      'read, not added up',
    )
  })
})

test('/metrics has what only some engines count, where they do', async (t) => {
  const ranker = rankerOf()
  const { engine, ...others } = ranker.stats()
  const kv = { gpuBytes: 11, gpuBudgetBytes: 99, hostBytes: 22, spills: 33, restores: 44 }
  const kernels = { library: '/some/where/libk.so', arithmetic: 'bf16' } as const
  let more: Partial<EngineStats> = { kv, batches: { runs: 55, users: 66 }, kernels }
  const stats = () => ({ ...others, engine: { ...engine, ...more } })
  let memory: ReturnType<Engine['gpuMemory'] & {}> = { usedBytes: 77, totalBytes: 88 }
  const gpuMemory = () => memory
  const app = await appOf(undefined, { ranker: () => ({ ...ranker, stats, gpuMemory }) })
  t.after(() => app.close())
  const samples = async () =>
    (await app.inject('/metrics')).body
      .split('\n')
      .filter((line) =>
        /^peregrine_(kv_(gpu|host|spills|restores)|one_pass|kernels|gpu)/.test(line),
      )
  const all = [
    'peregrine_kv_gpu_bytes{model="toy@abc123"} 11',
    'peregrine_kv_host_bytes{model="toy@abc123"} 22',
    'peregrine_kv_spills_total{model="toy@abc123"} 33',
    'peregrine_kv_restores_total{model="toy@abc123"} 44',
    'peregrine_one_pass_runs_total{model="toy@abc123"} 55',
    'peregrine_one_pass_users_total{model="toy@abc123"} 66',
    'peregrine_kernels_info{model="toy@abc123",library="libk.so",arithmetic="bf16"} 1',
    'peregrine_gpu_memory_used_bytes 77',
    'peregrine_gpu_memory_total_bytes 88',
  ]
  assert.deepEqual(await samples(), all)
  assert.deepEqual(await samples(), all, 'read, not added up')
  memory = undefined
  more = { batches: { runs: 0, users: 0 } }
  assert.deepEqual(await samples(), [
    'peregrine_one_pass_runs_total{model="toy@abc123"} 0',
    'peregrine_one_pass_users_total{model="toy@abc123"} 0',
  ])
  more = {}
  assert.deepEqual(await samples(), [])
})

test('/metrics has the costs that there are, and counts neither half answers nor what took no decision', async (t) => {
  const ranker = rankerOf(async (input) => {
    const { kv } = resultOf(input)
    if (input.user.id === 'late') {
      const { state, reusedTokens, prefilledTokens } = kv
      return resultOf(input, { kv: { state, reusedTokens, prefilledTokens }, scored: 0 })
    }
    return resultOf(input, {
      scored: input.user.id === 'half' ? 1 : 2,
      kv: { ...kv, decision: 'onePass' },
    })
  })
  let costs: RankerStats['costs']
  const stats = () => ({ ...ranker.stats(), ...(costs !== undefined && { costs }) })
  const app = await appOf(undefined, { ranker: () => ({ ...ranker, stats }) })
  t.after(() => app.close())
  for (const id of ['late', 'half', 'u']) {
    await app.inject({ method: 'POST', url: '/v1/rank', payload: { ...GOOD, user: { id } } })
  }
  const samples = async () =>
    (await app.inject('/metrics')).body
      .split('\n')
      .filter((line) => /^peregrine_(prefill|kv_(break|fetch|decis|prediction_ratio_c))/.test(line))
  const counts = [
    'peregrine_kv_decisions_total{model="toy@abc123",decision="onePass"} 2',
    'peregrine_kv_prediction_ratio_count{model="toy@abc123",decision="onePass"} 1',
  ]
  assert.deepEqual(await samples(), counts)
  costs = { breakEvenTokens: undefined, fetchBytesPerSec: undefined, prefillTokensPerSec: 9000 }
  assert.deepEqual(await samples(), [
    ...counts,
    'peregrine_prefill_tokens_per_second{model="toy@abc123"} 9000',
  ])
  costs = { breakEvenTokens: 90, fetchBytesPerSec: 5e6, prefillTokensPerSec: 8000 }
  assert.deepEqual(await samples(), [
    ...counts,
    'peregrine_kv_break_even_tokens{model="toy@abc123"} 90',
    'peregrine_kv_fetch_bytes_per_second{model="toy@abc123"} 5000000',
    'peregrine_prefill_tokens_per_second{model="toy@abc123"} 8000',
  ])
})

test('a client that leaves early is counted as 499 and hurts nobody', async (t) => {
  const { logger, parsed } = captured()
  const arrived = deferred<void>()
  const gate = deferred<void>()
  const left = deferred<void>()
  const done = deferred<void>()
  const app = await appOf(
    async (input) => {
      arrived.resolve()
      await gate.promise
      done.resolve()
      return resultOf(input)
    },
    { logger },
  )
  t.after(() => app.close())
  app.addHook('onRequest', async (_, reply) => {
    reply.raw.once('close', () => left.resolve())
  })
  const url = await app.listen({ port: 0 })
  const headers = { 'content-type': 'application/json' }
  const request = httpRequest(`${url}/v1/rank`, { method: 'POST', headers })
  request.on('error', () => {})
  request.end(JSON.stringify(GOOD))
  await arrived.promise
  request.destroy()
  await left.promise
  gate.resolve()
  await done.promise
  assert.equal((await fetch(`${url}/livez`)).status, 200)
  const metrics = await (await fetch(`${url}/metrics`)).text()
  assert.match(metrics, /peregrine_requests_total\{route="\/v1\/rank",status="499"\} 1/)
  assert.match(metrics, /^peregrine_inflight_requests 0$/m)
  assert.deepEqual(
    parsed().flatMap(({ route, status, level }) => (route === '/v1/rank' ? [[status, level]] : [])),
    [[499, 'info']],
  )
})
