import { Counter, Histogram, type Registry } from 'prom-client'
import type { Appended } from '../cache/events.js'
import type { KvUse, RankResult, RetrieveResult } from '../falcon/types.js'
import type { Build } from './build.js'
import type { HttpCode } from './errors.js'
import { removeModel } from './models/metrics.js'
import type { LoadedModel } from './models/source.js'
import { addRankerMetrics } from './ranker-metrics.js'
import { addScraped } from './scraped.js'
import type { Exemplar } from './tracing.js'

export type Stage =
  | 'parse'
  | 'sequence'
  | 'history'
  | 'score'
  | 'heads'
  | 'encode'
  | 'search'
  | 'serialize'

export type Metrics = ReturnType<typeof createMetrics>

/** From a cache hit on a GPU, below a millisecond, to a long history on a laptop. */
const LATENCY_SEC = [
  0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
]
/** Measured over predicted: 1 is right, and a queue shows as many times that. */
const RATIOS = [0.1, 0.25, 0.5, 0.7, 0.85, 1, 1.2, 1.5, 2, 4, 10, 30]
const CANDIDATES = [1, 10, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 20_000, 50_000]

/**
 * Registers every metric in `registry`; what the layers below count is read at scrape time. The label
 * `model` is `name@version` of what is loaded; `forget` removes what one that went has counted.
 */
export function createMetrics(
  registry: Registry,
  models: () => readonly LoadedModel[],
  inFlight: () => number,
) {
  const registers = [registry]
  const stages = new Histogram<string>({
    name: 'peregrine_stage_seconds',
    help: 'Time per stage of a request',
    labelNames: ['stage'],
    buckets: LATENCY_SEC,
    enableExemplars: true,
    registers: [],
  })
  const lookups = counter('kv_lookups_total', 'K/V cache lookups by result; tier 2 is Redis', [
    'model',
    'state',
    'tier',
  ])
  const decisions = counter('kv_decisions_total', 'Rankings by how K/V was got or done without', [
    'model',
    'decision',
  ])
  const predictions = new Histogram({
    name: 'peregrine_kv_prediction_ratio',
    help: 'Measured over predicted time of K/V and scores',
    labelNames: ['model', 'decision'],
    buckets: RATIOS,
    registers,
  })
  const prefilled = counter('tokens_prefilled_total', 'History tokens that were prefilled', [
    'model',
  ])
  const reused = counter('tokens_reused_total', 'History tokens taken from the K/V cache', [
    'model',
  ])
  const candidates = counter('candidates_total', 'Candidates scored', ['model'])
  const perRequest = new Histogram({
    name: 'peregrine_candidates_per_request',
    help: 'Candidates of a request',
    buckets: CANDIDATES,
    registers,
  })
  const microBatches = counter('micro_batches_total', 'Micro-batches scored', ['model'])
  const warnings = counter('warnings_total', 'Warnings by code', ['code'])
  const requests = counter('requests_total', 'HTTP requests', ['route', 'status'])
  const errors = counter('errors_total', 'Refused and failed rankings, also inside batches', [
    'code',
  ])
  const retries = counter('retries_total', 'Rankings run again after a worker crashed')
  const prefetches = counter('prefetches_total', 'K/V made ahead of a ranking, by result', [
    'model',
    'state',
  ])
  const rankSeconds = new Histogram({
    name: 'peregrine_rank_seconds',
    help: 'Time of a ranking from tokens to items, its wait for a worker included',
    labelNames: ['model'],
    buckets: LATENCY_SEC,
    registers,
  })
  const retrieveSeconds = new Histogram({
    name: 'peregrine_retrieve_seconds',
    help: 'Time of a retrieval from tokens to items, its wait for a worker included',
    labelNames: ['model'],
    buckets: LATENCY_SEC,
    registers,
  })
  const searched = counter(
    'items_searched_total',
    'Items of candidate lists compared with a user',
    ['model'],
  )
  const events = counter('events_total', 'Events posted to stored histories, by result', ['result'])
  const seconds = new Histogram<string>({
    name: 'peregrine_request_seconds',
    help: 'Time from the headers of a request to its answer',
    labelNames: ['route'],
    buckets: LATENCY_SEC,
    enableExemplars: true,
    registers: [],
  })

  // As an option `registers` refuses exemplars, which only one of the formats that we answer has.
  for (const metric of [stages, seconds]) registry.registerMetric(metric)
  addScraped(registry, {
    kind: 'gauge',
    name: 'inflight_requests',
    help: 'Rankings admitted and not yet answered',
    read: inFlight,
  })
  addRankerMetrics(registry, models)
  const ofModels = [
    ...[lookups, decisions, predictions, prefilled, reused, candidates, microBatches],
    ...[prefetches, rankSeconds, retrieveSeconds, searched],
  ]

  function counter<T extends string = never>(name: string, help: string, labelNames: T[] = []) {
    return new Counter({ name: `peregrine_${name}`, help, labelNames, registers })
  }

  const stage = (name: Stage, tookMs: number, exemplar?: Exemplar) =>
    stages.observe({
      labels: { stage: name },
      value: tookMs / 1000,
      ...traced(exemplar),
    })

  /** What rankings and retrievals have in common. */
  const answered = (
    model: string,
    { kv, timings, warnings: told }: RankResult | RetrieveResult,
    retried: number,
    exemplar: Exemplar | undefined,
  ) => {
    lookups.inc({ model, state: kv.state, tier: String(kv.tier ?? 'none') })
    if (kv.decision !== undefined) decisions.inc({ model, decision: kv.decision })
    prefilled.inc({ model }, kv.prefilledTokens)
    reused.inc({ model }, kv.reusedTokens)
    retries.inc(retried)
    for (const { code, count } of told) warnings.inc({ code }, count)
    stage('sequence', timings.sequenceMs, exemplar)
    stage('history', timings.historyMs, exemplar)
  }

  return {
    stage,
    /** `exemplar` names the trace of the request, where somebody will see it. */
    request(route: string, status: number, tookMs: number | undefined, exemplar?: Exemplar): void {
      requests.inc({ route, status })
      if (tookMs === undefined) return
      seconds.observe({
        labels: { route },
        value: tookMs / 1000,
        ...traced(exemplar),
      })
    },
    error(code: HttpCode): void {
      errors.inc({ code })
    },
    prefetched(model: string, { state, prefilledTokens, reusedTokens }: KvUse): void {
      prefetches.inc({ model, state })
      prefilled.inc({ model }, prefilledTokens)
      reused.inc({ model }, reusedTokens)
    },
    appended({ stored, duplicates, trimmed }: Appended): void {
      events.inc({ result: 'stored' }, stored)
      events.inc({ result: 'duplicate' }, duplicates)
      events.inc({ result: 'trimmed' }, trimmed)
    },
    /** Removes what a model that is gone has counted. */
    forget(model: string): void {
      for (const metric of ofModels) void removeModel(metric, model)
    },
    retrieved(model: string, result: RetrieveResult, retried: number, exemplar?: Exemplar): void {
      const { timings } = result
      answered(model, result, retried, exemplar)
      searched.inc({ model }, result.listed)
      retrieveSeconds.observe({ model }, timings.totalMs / 1000)
      stage('encode', timings.encodeMs, exemplar)
      stage('search', timings.searchMs, exemplar)
    },
    ranked(model: string, result: RankResult, retried: number, exemplar?: Exemplar): void {
      const { kv, timings } = result
      answered(model, result, retried, exemplar)
      const { decision, predictedMs = 0, measuredMs = 0 } = kv
      // A partial answer took less than was predicted for all of it.
      if (decision !== undefined && predictedMs > 0 && result.scored === result.candidates) {
        predictions.observe({ model, decision }, measuredMs / predictedMs)
      }
      candidates.inc({ model }, result.scored)
      rankSeconds.observe({ model }, timings.totalMs / 1000)
      perRequest.observe(result.candidates)
      microBatches.inc({ model }, result.microBatches)
      stage('score', timings.scoreMs, exemplar)
      stage('heads', timings.headsMs, exemplar)
    },
  }
}

/** For an observation, where somebody will see the trace. */
function traced(exemplar: Exemplar | undefined) {
  return exemplar !== undefined && { exemplarLabels: exemplar }
}

/** What runs here, for whoever compares versions in one dashboard. */
export function addBuildInfo(registry: Registry, build: Build): void {
  addScraped(registry, {
    kind: 'gauge',
    name: 'build_info',
    help: 'What runs here: version and commit of the server, Node, ONNX Runtime',
    labelNames: Object.keys(build),
    read: () => [{ labels: build, value: 1 }],
  })
}
