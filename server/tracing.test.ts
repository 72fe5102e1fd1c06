import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { after, before, describe, type TestContext, test } from 'node:test'
import type { FastifyInstance } from 'fastify'
import { createRanker } from '../falcon/rank.js'
import type { Ranker } from '../falcon/types.js'
import { createNodeEngine } from '../model/engine/node/pool.js'
import { createRandom } from '../model/random.js'
import { exportModel, randomRequest } from '../test/fixtures.js'
import { type Collector, startCollector } from '../test/otlp.js'
import { appOf } from '../test/plain-ranker.js'
import { until } from '../test/redis.js'
import { readBuild } from './build.js'
import { createLogger } from './log.js'
import { openTracing } from './tracing.js'

const model = exportModel({ after })
let ranker: Ranker
before(async () => {
  const engine = await createNodeEngine({ bundle: model.bundle })
  ranker = createRanker({ engine, bundle: model.bundle, microBatchSize: 2, maxKvBytes: 1e9 })
})
after(() => ranker.close())

const TRACE_ID = '4bf92f3577b34da6a3ce929d0e0e4736'
const CALLER = '00f067aa0ba902b7'
const traceparent = (flags: '00' | '01') => `00-${TRACE_ID}-${CALLER}-${flags}`

/** A request with five candidates: three micro-batches of at most two. */
function bodyOf(user: string, events = 4): object {
  const shape = { user, events, candidates: 5 }
  const { histories, series, ...input } = randomRequest(model.config, createRandom(7), shape)
  return { ...input, histories, series, history: [] }
}

/** The variables for one test. */
function withEnv(t: TestContext, variables: { readonly [name: string]: string }): void {
  for (const [name, value] of Object.entries(variables)) process.env[name] = value
  t.after(() => {
    for (const name of Object.keys(variables)) delete process.env[name]
  })
}

function captured() {
  const lines: string[] = []
  const log = createLogger('info', { write: (line) => void lines.push(line) })
  return { log, lines, requests: () => lines.map((line) => JSON.parse(line)) }
}

/** An app that traces to a collector of its own; `flush` closes it and gives its spans. */
async function traced(t: TestContext, variables: { readonly [name: string]: string } = {}) {
  const collector = await startCollector(t)
  withEnv(t, { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url, ...variables })
  const { log, lines, requests } = captured()
  const tracing = await openTracing(readBuild(), log)
  assert.ok(tracing !== undefined)
  const app = await appOf(undefined, { ranker: () => ranker, logger: log, tracing })
  t.after(() => app.close())
  const flush = async () => {
    await app.close()
    await tracing.close()
    return collector.spans
  }
  return { app, collector, lines, requests, flush }
}

function post(app: FastifyInstance, payload: object, headers: object = {}, url = '/v1/rank') {
  return app.inject({ method: 'POST', url, payload, headers: { ...headers } })
}

describe('tracing is off', () => {
  test('without an endpoint, or when told so, and then nothing of the SDK is loaded', async (t) => {
    const { log } = captured()
    const build = readBuild()
    assert.equal(await openTracing(build, log), undefined)
    withEnv(t, { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:4318', OTEL_SDK_DISABLED: 'true' })
    assert.equal(await openTracing(build, log), undefined)
    process.env.OTEL_SDK_DISABLED = 'false'
    withEnv(t, { OTEL_TRACES_EXPORTER: 'none' })
    assert.equal(await openTracing(build, log), undefined)
    const loaded = Object.keys(createRequire(import.meta.url).cache)
    assert.ok(loaded.some((file) => file.includes('/prom-client/')))
    assert.deepEqual(
      loaded.filter((file) => /opentelemetry\/(sdk|exporter|core|resources)/.test(file)),
      [],
    )
  })

  for (const [variables, message] of [
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: 'collector:4318' }, /ENDPOINT must be an http or https URL/],
    [{ OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'x' }, /TRACES_ENDPOINT must be an http or https URL/],
    [
      { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://c:4317', OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' },
      /OTEL_EXPORTER_OTLP_PROTOCOL must be http\/protobuf, got "grpc"/,
    ],
  ] as const) {
    test(`and the start fails, with ${JSON.stringify(variables)}`, async (t) => {
      withEnv(t, variables)
      const { log } = captured()
      await assert.rejects(openTracing(readBuild(), log), { code: 'CONFIG_INVALID', message })
    })
  }
})

describe('a ranking in a trace', () => {
  test('is told to the collector part by part, under the caller’s span', async (t) => {
    const { app, collector, requests, flush } = await traced(t, {
      OTEL_SERVICE_NAME: 'ranking-eu',
      OTEL_RESOURCE_ATTRIBUTES: 'deployment.environment.name=test',
    })
    const headers = { traceparent: traceparent('01'), 'x-request-id': 'r7' }
    const res = await post(app, bodyOf('SECRET-user'), headers)
    assert.equal(res.statusCode, 200, res.body)
    const again = await post(app, bodyOf('SECRET-user'), headers)
    assert.equal(again.json().kv.state, 'hit')
    const scrape = await app.inject({
      url: '/metrics',
      headers: { accept: 'application/openmetrics-text' },
    })
    const spans = await flush()
    assert.deepEqual(new Set(collector.posts), new Set(['/v1/traces application/x-protobuf']))
    assert.deepEqual(new Set(spans.map((span) => span.traceId)), new Set([TRACE_ID]))

    const roots = spans.filter(({ name }) => name === 'POST /v1/rank')
    const [root, second] = roots
    assert.ok(root !== undefined && second !== undefined)
    assert.equal(root.parentSpanId, CALLER)
    assert.equal(root.kind, 2)
    assert.deepEqual(root.attributes, {
      'http.request.method': 'POST',
      'http.route': '/v1/rank',
      'http.response.status_code': 200,
      'peregrine.request_id': 'r7',
    })
    const { resource } = root
    assert.equal(resource['service.name'], 'ranking-eu')
    assert.equal(resource['service.version'], readBuild().version)
    assert.equal(resource['deployment.environment.name'], 'test')
    assert.match(String(resource['service.instance.id']), /^[0-9a-f-]{36}$/)

    const childrenOf = (spanId: string) =>
      spans
        .filter(({ parentSpanId }) => parentSpanId === spanId)
        .toSorted((a, b) => (a.endNs < b.endNs ? -1 : 1))
    assert.deepEqual(
      childrenOf(root.spanId).map(({ name }) => name),
      ['parse', 'queue', 'rank', 'serialize'],
    )
    const queue = childrenOf(root.spanId).find(({ name }) => name === 'queue')
    assert.deepEqual(queue?.attributes, { 'peregrine.priority': 'normal' })
    const stepsOf = (spanId: string) => {
      const rank = childrenOf(spanId).find(({ name }) => name === 'rank')
      const steps = childrenOf(rank?.spanId ?? '')
      return { rank, steps: steps.map(({ name, attributes }) => [name, attributes]) }
    }
    const tokens = Number(stepsOf(root.spanId).rank?.attributes['peregrine.history_tokens'])
    assert.ok(tokens > 0)
    const score = (candidates: number) => ['score', { 'peregrine.candidates': candidates }]
    const lookup = (found: number) => [
      'kv.lookup',
      { 'peregrine.tokens': tokens, 'peregrine.found': found },
    ]
    const sequence = ['sequence', { 'peregrine.tokens': tokens }]
    const heads = ['heads', { 'peregrine.items': 5 }]
    assert.deepEqual(stepsOf(root.spanId).steps, [
      sequence,
      lookup(0),
      ['kv.prefill', { 'peregrine.tokens': tokens, 'peregrine.past_tokens': 0 }],
      ...[score(1), score(2), score(2)],
      heads,
    ])
    assert.deepEqual(stepsOf(second.spanId).steps, [
      sequence,
      lookup(tokens),
      ...[score(1), score(2), score(2)],
      heads,
    ])
    assert.deepEqual(stepsOf(second.spanId).rank?.attributes, {
      'peregrine.candidates': 5,
      'peregrine.scored': 5,
      'peregrine.history_tokens': tokens,
      'peregrine.micro_batches': 3,
      'peregrine.retries': 0,
      'peregrine.kv.state': 'hit',
      'peregrine.kv.tier': 1,
      'peregrine.kv.decision': 'hit',
      'peregrine.kv.reused_tokens': tokens,
      'peregrine.kv.prefilled_tokens': 0,
    })
    // A microsecond: times are floating-point milliseconds since 1970.
    const slackNs = 1000n
    for (const span of spans) {
      assert.ok(span.startNs <= span.endNs)
      const parent = spans.find(({ spanId }) => spanId === span.parentSpanId)
      if (parent === undefined || span.name === 'parse') continue
      assert.ok(parent.startNs <= span.startNs + slackNs, `${span.name} began before its parent`)
      assert.ok(span.endNs <= parent.endNs + slackNs, `${span.name} ended after its parent`)
    }
    assert.doesNotMatch(
      JSON.stringify(spans, (_, value) => (typeof value === 'bigint' ? String(value) : value)),
      /SECRET/,
    )

    const [line] = requests()
    assert.deepEqual(
      [line.reqId, line.trace_id, line.span_id, line.trace_flags],
      ['r7', TRACE_ID, root.spanId, '01'],
    )
    for (const name of ['request', 'stage']) {
      const exemplar = new RegExp(`^peregrine_${name}_seconds_bucket.* # .*"${TRACE_ID}"`, 'm')
      assert.match(scrape.body, exemplar)
    }
  })

  test('that nobody samples is in the log and nowhere else', async (t) => {
    const { app, requests, flush } = await traced(t)
    const res = await post(app, bodyOf('u2'), { traceparent: traceparent('00') })
    assert.equal(res.statusCode, 200)
    const accept = 'application/openmetrics-text'
    const scrape = await app.inject({ url: '/metrics', headers: { accept } })
    assert.doesNotMatch(scrape.body, / # \{/)
    assert.deepEqual(await flush(), [])
    const [line] = requests()
    assert.deepEqual([line.trace_id, line.trace_flags], [TRACE_ID, '00'])
  })

  test('follows the caller’s flag first and the ratio where there is no caller', async (t) => {
    const { app, flush } = await traced(t, {
      OTEL_TRACES_SAMPLER: 'parentbased_traceidratio',
      OTEL_TRACES_SAMPLER_ARG: '0',
    })
    await post(app, bodyOf('u3'))
    await post(app, bodyOf('u3'), { traceparent: traceparent('01') })
    await post(app, bodyOf('u3'), { traceparent: 'none of ours' })
    const roots = (await flush()).filter(({ kind }) => kind === 2)
    assert.deepEqual(
      roots.map(({ traceId }) => traceId),
      [TRACE_ID],
    )
  })

  test('has a span for each of a batch, and says which failed with what', async (t) => {
    const { app, flush } = await traced(t)
    const history = [{ item: '1', time: 1, actions: ['nothing'] }]
    const requests = [bodyOf('u4'), { ...bodyOf('u4', 5), history }]
    const res = await post(app, { requests }, {}, '/v1/rank/batch')
    assert.equal(res.statusCode, 200)
    await post(app, {}, { traceparent: traceparent('01') })
    await app.inject('/livez')
    await app.inject('/v1/users/SECRET')
    const spans = await flush()
    assert.deepEqual(
      spans.flatMap(({ name, attributes }) =>
        name === 'rank' ? [attributes['error.type'] ?? 'good'] : [],
      ),
      ['INVALID_REQUEST', 'good'],
    )
    const roots = spans.filter(({ kind }) => kind === 2)
    assert.deepEqual(
      roots.map(({ name, attributes, status }) => [name, attributes['error.type'], status]),
      [
        ['POST /v1/rank/batch', undefined, 0],
        ['POST /v1/rank', 'INVALID_REQUEST', 0],
        ['GET /v1/users/:id', undefined, 0],
      ],
    )
  })

  test('is served all the same when the collector refuses or is away', async (t) => {
    const { app, collector, lines, flush } = await traced(t, { OTEL_BSP_SCHEDULE_DELAY: '10' })
    collector.answer(400)
    const warnings = () => lines.filter((line) => line.includes('spans may be missing'))
    assert.equal((await post(app, bodyOf('u5'))).statusCode, 200)
    await until('a warning', () => warnings().length > 0)
    assert.equal((await post(app, bodyOf('u5'))).statusCode, 200)
    const before = collector.posts.length
    await until('another batch', () => collector.posts.length > before)
    assert.deepEqual(await flush(), [])
    assert.equal(warnings().length, 1, warnings().join(''))
  })
})

test('an endpoint for traces alone wins, and is taken as it is', async (t) => {
  const collector: Collector = await startCollector(t)
  withEnv(t, { OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: `${collector.url}/custom/path` })
  const { log } = captured()
  const tracing = await openTracing(readBuild(), log)
  const request = { method: 'POST', route: '/v1/rank', headers: {}, id: 'r' }
  tracing?.begin(request).end(503, 'NOT_READY')
  await tracing?.close()
  assert.deepEqual(collector.posts, ['/custom/path application/x-protobuf'])
  assert.deepEqual(
    collector.spans.map(({ name, status, parentSpanId }) => [name, status, parentSpanId]),
    [['POST /v1/rank', 2, '']],
  )
})
