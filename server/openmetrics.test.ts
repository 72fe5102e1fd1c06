import assert from 'node:assert/strict'
import { test } from 'node:test'
import { collectDefaultMetrics, Registry } from 'prom-client'
import { rankerOf } from '../test/plain-ranker.js'
import { createMetrics } from './metrics.js'
import { singleModel } from './models/source.js'
import { expose } from './openmetrics.js'

/** Prometheus 2.42's own. */
const ACCEPT =
  'application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1'
const TRACE = { trace_id: '4bf92f3577b34da6a3ce929d0e0e4736', span_id: '00f067aa0ba902b7' }

function registryOf() {
  const registry = new Registry()
  const metrics = createMetrics(registry, singleModel(() => rankerOf()).loaded, () => 0)
  return { registry, metrics }
}

test('OpenMetrics is answered to whom asks for it, with the trace of a request in its bucket', async () => {
  const { registry, metrics } = registryOf()
  metrics.request('/v1/rank', 200, 4, TRACE)
  metrics.stage('score', 0.3, TRACE)
  metrics.stage('score', 70)
  const { contentType, text } = await expose(registry, ACCEPT)
  assert.match(contentType, /^application\/openmetrics-text; version=1\.0\.0/)
  const lines = text.split('\n')
  assert.deepEqual(lines.slice(-2), ['# EOF', ''])
  const labels = `trace_id="${TRACE.trace_id}",span_id="${TRACE.span_id}"`
  const exemplars = lines.filter((line) => line.includes(' # '))
  assert.deepEqual(
    exemplars.map((line) => line.replace(/ \d+\.?\d*$/, '')),
    [
      `peregrine_stage_seconds_bucket{le="0.0005",stage="score"} 1 # {${labels}} 0.0003`,
      `peregrine_request_seconds_bucket{le="0.005",route="/v1/rank"} 1 # {${labels}} 0.004`,
    ],
  )
  assert.ok(lines.includes('# TYPE peregrine_requests counter'))
  assert.ok(lines.includes('peregrine_requests_total{route="/v1/rank",status="200"} 1'))
})

test('each format stays what it is however the scrapers take turns', async () => {
  const { registry, metrics } = registryOf()
  collectDefaultMetrics({ register: registry })
  metrics.request('/v1/rank', 200, 4, TRACE)
  // What a scrape of the process itself moves is not for comparing.
  const namesOf = async (accept: string | undefined) =>
    (await expose(registry, accept)).text
      .split('\n')
      .map((line) => (line.startsWith('peregrine') ? line : (line.split(/[ {]/)[0] ?? '')))
      .map((line, i, all) => (line === '#' ? `${i} of ${all.length}` : line))
  const classic = await namesOf(undefined)
  const open = await namesOf(ACCEPT)
  assert.notDeepEqual(classic, open)
  for (let turn = 0; turn < 3; turn++) {
    const both = await Promise.all([namesOf('text/plain'), namesOf(ACCEPT), namesOf('*/*')])
    assert.deepEqual(both, [classic, open, classic])
  }
})
