import { Counter, Gauge, Histogram, type Registry } from 'prom-client'
import type { Appended } from '../cache/events.js'
import type { KvUse, RankResult } from '../falcon/types.js'
import type { HttpCode } from './errors.js'
import { addModelMetrics, perModelMetrics, removeModel } from './models/metrics.js'
import type { LoadedModel } from './models/source.js'
import { addRedisMetrics } from './redis-metrics.js'
import { addStoreMetrics } from './store-metrics.js'

export type Stage = 'parse' | 'sequence' | 'history' | 'score' | 'heads' | 'serialize'

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
  const stats = () => models()[0]?.ranker.stats()
  const stage = new Histogram({
    name: 'peregrine_stage_seconds',
    help: 'Time per stage of a request',
    labelNames: ['stage'],
    buckets: LATENCY_SEC,
    registers,
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
  const events = counter('events_total', 'Events posted to stored histories, by result', ['result'])
  const seconds = new Histogram({
    name: 'peregrine_request_seconds',
    help: 'Time from the headers of a request to its answer',
    labelNames: ['route'],
    buckets: LATENCY_SEC,
    registers,
  })

  const ofModels = [
    ...[lookups, decisions, predictions, prefilled, reused, candidates, microBatches],
    ...[prefetches, rankSeconds],
  ]

  new Gauge({
    name: 'peregrine_inflight_requests',
    help: 'Rankings admitted and not yet answered',
    registers,
    collect() {
      this.set(inFlight())
    },
  })
  const perModel = perModelMetrics(registry, models)
  perModel(Gauge, 'engine_pending_jobs', 'Engine jobs accepted and not yet answered', (stats) => {
    return stats.engine.pendingJobs
  })
  perModel(Gauge, 'engine_workers', 'Engine workers', ({ engine }) => engine.workers)
  perModel(Gauge, 'kv_entries', 'Users in the K/V cache', ({ cache }) => cache.entries)
  perModel(Gauge, 'kv_bytes', 'Bytes in the K/V cache', ({ cache }) => cache.kvBytes)
  perModel(Gauge, 'kv_max_bytes', 'Budget of the K/V cache', ({ cache }) => cache.maxKvBytes)
  perModel(
    Counter,
    'engine_restarts_total',
    'Workers that crashed and were replaced',
    ({ engine }) => engine.restarts,
  )
  perModel(Counter, 'kv_evictions_total', 'K/V entries evicted', ({ cache }) => cache.evictions)
  perModel(
    Gauge,
    'kv_break_even_tokens',
    'History length from which K/V is fetched from tier 2 sooner than computed',
    ({ costs }) => costs?.breakEvenTokens,
  )
  perModel(
    Gauge,
    'kv_fetch_bytes_per_second',
    'Predicted throughput of tier 2',
    ({ costs }) => costs?.fetchBytesPerSec,
  )
  perModel(
    Gauge,
    'prefill_tokens_per_second',
    'Predicted throughput of a prefill of the longest history',
    ({ costs }) => costs?.prefillTokensPerSec,
  )
  perModel(Gauge, 'kv_gpu_bytes', 'Bytes of K/V on the GPU', ({ engine }) => engine.kv?.gpuBytes)
  perModel(
    Gauge,
    'kv_host_bytes',
    'Bytes of K/V in pinned host memory, behind the GPU’s budget',
    ({ engine }) => engine.kv?.hostBytes,
  )
  perModel(
    Counter,
    'kv_spills_total',
    'K/V blocks moved from the GPU to the host',
    ({ engine }) => engine.kv?.spills,
  )
  perModel(
    Counter,
    'kv_restores_total',
    'K/V blocks moved back',
    ({ engine }) => engine.kv?.restores,
  )
  perModel(
    Counter,
    'one_pass_runs_total',
    'Runs of one-pass ranking',
    ({ engine }) => engine.batches?.runs,
  )
  perModel(
    Counter,
    'one_pass_users_total',
    'Users ranked in one pass, several of them in one run',
    ({ engine }) => engine.batches?.users,
  )
  addRedisMetrics(registry, models)
  addStoreMetrics(registry, stats)
  addModelMetrics(registry, models)

  function counter<T extends string = never>(name: string, help: string, labelNames: T[] = []) {
    return new Counter({ name: `peregrine_${name}`, help, labelNames, registers })
  }

  return {
    stage(name: Stage, tookMs: number): void {
      stage.observe({ stage: name }, tookMs / 1000)
    },
    request(route: string, status: number, tookMs: number | undefined): void {
      requests.inc({ route, status })
      if (tookMs !== undefined) seconds.observe({ route }, tookMs / 1000)
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
    ranked(model: string, result: RankResult, retried: number): void {
      const { kv, timings } = result
      lookups.inc({ model, state: kv.state, tier: String(kv.tier ?? 'none') })
      const { decision, predictedMs = 0, measuredMs = 0 } = kv
      if (decision !== undefined) decisions.inc({ model, decision })
      // A partial answer took less than was predicted for all of it.
      if (decision !== undefined && predictedMs > 0 && result.scored === result.candidates) {
        predictions.observe({ model, decision }, measuredMs / predictedMs)
      }
      prefilled.inc({ model }, kv.prefilledTokens)
      reused.inc({ model }, kv.reusedTokens)
      candidates.inc({ model }, result.scored)
      rankSeconds.observe({ model }, timings.totalMs / 1000)
      perRequest.observe(result.candidates)
      microBatches.inc({ model }, result.microBatches)
      retries.inc(retried)
      for (const { code, count } of result.warnings) warnings.inc({ code }, count)
      stage.observe({ stage: 'sequence' }, timings.sequenceMs / 1000)
      stage.observe({ stage: 'history' }, timings.historyMs / 1000)
      stage.observe({ stage: 'score' }, timings.scoreMs / 1000)
      stage.observe({ stage: 'heads' }, timings.headsMs / 1000)
    },
  }
}
