import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { EventEmitter } from 'node:events'
import { readFileSync } from 'node:fs'
import { describe, type TestContext, test } from 'node:test'
import { loadRanker } from '../falcon/load.js'
import { createRandom } from '../model/random.js'
import { parseServerConfig } from '../server/config.js'
import { createLogger } from '../server/log.js'
import { serve } from '../server/serve.js'
import { exportModel, type ModelFixture, randomRequest } from './fixtures.js'
import { startCollector } from './otlp.js'
import { NO_PROMETHEUS, type Prometheus, startPrometheus } from './prometheus.js'
import { NO_REDIS, startRedis, until } from './redis.js'

const FOLDER = 'deploy/prometheus'

/** Panels that a server like the one below, healthy and on a CPU, may leave empty. */
const MAY_BE_EMPTY: { readonly [title: string]: string } = {
  'K/V on GPU and pinned host memory': 'needs a GPU',
  'Moves between GPU and host': 'needs a GPU',
  'GPU memory': 'needs a GPU',
  'Retrieval p50 and p99': 'needs a model that retrieves',
  'Items compared': 'needs a model that retrieves',
  'Users per one-pass run': 'needs engine capi',
  'Worth fetching from': 'depends on the machine: where computing is always sooner there is none',
  'Refusals by reason': 'needs more load than the server can take',
}

type Panel = { readonly title: string; readonly expressions: readonly string[] }

/** The dashboard's panels with their expressions as Grafana would send them. */
function panels(): Panel[] {
  const { panels: all }: { panels: { title: string; targets?: { expr: string }[] }[] } = JSON.parse(
    readFileSync('deploy/grafana/peregrine.json', 'utf8'),
  )
  return all.flatMap(({ title, targets }) =>
    targets === undefined ? [] : [{ title, expressions: targets.map(({ expr }) => filled(expr)) }],
  )
}

function filled(expression: string): string {
  return expression
    .replaceAll('$__rate_interval', '10s')
    .replaceAll('$job', '.*')
    .replaceAll('$instance', '.*')
}

/** The repository's configuration, for one server that is asked more often. */
function configFor(url: string): string {
  const rules = `${process.cwd()}/${FOLDER}/alerts.yml`
  return readFileSync(`${FOLDER}/prometheus.yml`, 'utf8')
    .replace('rule_files: [alerts.yml]', `rule_files: ['${rules}']`)
    .replace('localhost:8080', new URL(url).host)
    .replaceAll(/_interval: 5s/g, '_interval: 500ms')
}

async function startServer(t: TestContext, { bundle }: ModelFixture, redisUrl: string) {
  const flags = ['--bundle', bundle.folder, '--port', '0', '--kv', 'always']
  // A byte of tier 1: Redis is asked, and entries are evicted.
  const small = ['--kv-bytes', '1', '--redis-url', redisUrl, '--micro-batch-size', '4']
  const { config } = parseServerConfig([...flags, ...small], {})
  const served = await serve({
    config,
    loadRanker: (settings) => loadRanker({ ...settings, maxKvBytes: settings.kvBytes }),
    log: createLogger('silent'),
    signals: new EventEmitter(),
    setExitCode: () => {},
  })
  t.after(() => served.stop('done'))
  assert.equal(await served.loaded, true)
  return served.url
}

/** Every kind of request in turn, until `isOver`. */
async function load(url: string, { config }: ModelFixture, isOver: () => boolean): Promise<void> {
  const random = createRandom(11)
  const post = async (path: string, body: object) => {
    const headers = { 'content-type': 'application/json' }
    const init = { method: 'POST', headers, body: JSON.stringify(body) }
    await (await fetch(`${url}${path}`, init)).arrayBuffer()
  }
  for (let round = 0; !isOver(); round++) {
    const user = `u${round % 5}`
    const shape = { user, events: 6 + (round % 3), candidates: 6 }
    const { histories, ...input } = randomRequest(config, random, shape)
    const [history = []] = histories
    const ranking = { ...input, history }
    await post('/v1/rank', ranking)
    await post('/v1/rank', ranking)
    await post('/v1/rank', { ...input, history: [], candidates: ['unknown', '1'] })
    await post('/v1/rank/batch', { requests: [ranking, {}] })
    await post(`/v1/users/${user}/events`, { events: history })
    const { candidates, ...prefetched } = input
    await post('/v1/prefetch', { ...prefetched, wait: true })
    await post('/v1/rank', {})
  }
}

/** Panels of which some expression has no series with a number. */
async function emptyPanels(prometheus: Prometheus): Promise<string[]> {
  const all = await Promise.all(
    panels().map(async ({ title, expressions }) => {
      const results = await Promise.all(expressions.map(prometheus.query))
      const isEmpty = results.some((found) => !found.some(({ value }) => !Number.isNaN(value)))
      return isEmpty && !(title in MAY_BE_EMPTY) ? [title] : []
    }),
  )
  return all.flat()
}

describe('deploy/prometheus', { skip: NO_PROMETHEUS }, () => {
  for (const args of [
    ['check', 'config', `${FOLDER}/prometheus.yml`],
    ['test', 'rules', `${FOLDER}/alerts.test.yml`],
  ]) {
    test(`passes promtool ${args.join(' ')}`, () => {
      assert.match(execFileSync('promtool', args, { encoding: 'utf8' }), /SUCCESS/)
    })
  }

  test('every alert is shown firing and not firing', () => {
    const alerts = readFileSync(`${FOLDER}/alerts.yml`, 'utf8').match(/(?<=- alert: )\w+/g) ?? []
    const tests = readFileSync(`${FOLDER}/alerts.test.yml`, 'utf8')
    assert.ok(alerts.length > 10)
    for (const name of alerts) {
      assert.match(tests, new RegExp(`alertname: ${name} ?\\}`), `${name} at rest`)
      assert.match(tests, new RegExp(`alertname: ${name}\n +exp_alerts:\n +- exp_labels`), name)
    }
  })
})

describe('deploy/grafana/peregrine.json', () => {
  test('exempts only panels that it has', () => {
    const titles = new Set(panels().map(({ title }) => title))
    assert.deepEqual(
      Object.keys(MAY_BE_EMPTY).filter((title) => !titles.has(title)),
      [],
    )
  })

  test('has no empty panel, and exemplars that lead to traces, with a server under load', {
    skip: NO_PROMETHEUS || NO_REDIS,
  }, async (t) => {
    const collector = await startCollector(t)
    process.env.OTEL_EXPORTER_OTLP_ENDPOINT = collector.url
    t.after(() => {
      delete process.env.OTEL_EXPORTER_OTLP_ENDPOINT
    })
    const model = exportModel(t)
    const redis = await startRedis(t)
    const url = await startServer(t, model, redis.url)
    const prometheus = await startPrometheus(t, configFor(url))
    let isOver = false
    const loading = load(url, model, () => isOver)
    try {
      let empty: string[] = []
      await until('every panel to have data', async () => {
        empty = await emptyPanels(prometheus)
        return empty.length === 0
      }).catch((cause) => assert.fail(`${cause.message}; empty: ${empty.join(', ')}`))
      const [target] = await prometheus.query('up')
      assert.equal(target?.value, 1)
      const now = Date.now() / 1000
      const exemplars = await prometheus.get('query_exemplars', {
        query: 'peregrine_request_seconds_bucket',
        ...{ start: String(now - 60), end: String(now + 60) },
      })
      const [, traceId] = /"trace_id":"([0-9a-f]{32})"/.exec(JSON.stringify(exemplars)) ?? []
      assert.ok(traceId !== undefined, 'no exemplar')
      await until('its trace', () => collector.spans.some((span) => span.traceId === traceId))
    } finally {
      isOver = true
      await loading
    }
  })
})
