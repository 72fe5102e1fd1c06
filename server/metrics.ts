import { basename } from 'node:path'
import { Counter, Gauge, Histogram, type Registry } from 'prom-client'
import type { Appended } from '../cache/events.js'
import type { KvUse, Ranker, RankerStats, RankResult } from '../falcon/types.js'
import type { HttpCode } from './errors.js'
import { addRedisMetrics } from './redis-metrics.js'

export type Stage = 'parse' | 'sequence' | 'history' | 'score' | 'heads' | 'serialize'

export type Metrics = ReturnType<typeof createMetrics>

/** From a cache hit on a GPU, below a millisecond, to a long history on a laptop. */
const LATENCY_SEC = [
  0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
]
/** Measured over predicted: 1 is right, and a queue shows as many times that. */
const RATIOS = [0.1, 0.25, 0.5, 0.7, 0.85, 1, 1.2, 1.5, 2, 4, 10, 30]
const CANDIDATES = [1, 10, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 20_000, 50_000]

/** Registers every metric in `registry`; what the layers below count is read at scrape time. */
export function createMetrics(
  registry: Registry,
  ranker: () => Ranker | undefined,
  inFlight: () => number,
) {
  const registers = [registry]
  const stage = new Histogram({
    name: 'peregrine_stage_seconds',
    help: 'Time per stage of a request',
    labelNames: ['stage'],
    buckets: LATENCY_SEC,
    registers,
  })
  const lookups = counter('kv_lookups_total', 'K/V cache lookups by result; tier 2 is Redis', [
    'state',
    'tier',
  ])
  const decisions = counter('kv_decisions_total', 'Rankings by how K/V was got or done without', [
    'decision',
  ])
  const predictions = new Histogram({
    name: 'peregrine_kv_prediction_ratio',
    help: 'Measured over predicted time of K/V and scores',
    labelNames: ['decision'],
    buckets: RATIOS,
    registers,
  })
  const prefilled = counter('tokens_prefilled_total', 'History tokens that were prefilled')
  const reused = counter('tokens_reused_total', 'History tokens taken from the K/V cache')
  const candidates = counter('candidates_total', 'Candidates scored')
  const perRequest = new Histogram({
    name: 'peregrine_candidates_per_request',
    help: 'Candidates of a request',
    buckets: CANDIDATES,
    registers,
  })
  const microBatches = counter('micro_batches_total', 'Micro-batches scored')
  const warnings = counter('warnings_total', 'Warnings by code', ['code'])
  const requests = counter('requests_total', 'HTTP requests', ['route', 'status'])
  const errors = counter('errors_total', 'Refused and failed rankings, also inside batches', [
    'code',
  ])
  const retries = counter('retries_total', 'Rankings run again after a worker crashed')
  const prefetches = counter('prefetches_total', 'K/V made ahead of a ranking, by result', [
    'state',
  ])
  const events = counter('events_total', 'Events posted to stored histories, by result', ['result'])
  const seconds = new Histogram({
    name: 'peregrine_request_seconds',
    help: 'Time from the headers of a request to its answer',
    labelNames: ['route'],
    buckets: LATENCY_SEC,
    registers,
  })

  gauge('inflight_requests', 'Rankings admitted and not yet answered', inFlight)
  gauge('engine_pending_jobs', 'Engine jobs accepted and not yet answered', () => {
    return ranker()?.stats().engine.pendingJobs
  })
  gauge('engine_workers', 'Engine workers', () => ranker()?.stats().engine.workers)
  gauge('kv_entries', 'Users in the K/V cache', () => ranker()?.stats().cache.entries)
  gauge('kv_bytes', 'Bytes in the K/V cache', () => ranker()?.stats().cache.kvBytes)
  gauge('kv_max_bytes', 'Budget of the K/V cache', () => ranker()?.stats().cache.maxKvBytes)
  mirror('engine_restarts_total', 'Workers that crashed and were replaced', () => {
    return ranker()?.stats().engine.restarts
  })
  mirror('kv_evictions_total', 'K/V entries evicted', () => ranker()?.stats().cache.evictions)
  optional(
    Gauge,
    'kv_break_even_tokens',
    'History length from which K/V is fetched from tier 2 sooner than computed',
    ({ costs }) => costs?.breakEvenTokens,
  )
  optional(
    Gauge,
    'kv_fetch_bytes_per_second',
    'Predicted throughput of tier 2',
    ({ costs }) => costs?.fetchBytesPerSec,
  )
  optional(
    Gauge,
    'prefill_tokens_per_second',
    'Predicted throughput of a prefill of the longest history',
    ({ costs }) => costs?.prefillTokensPerSec,
  )
  optional(Gauge, 'kv_gpu_bytes', 'Bytes of K/V on the GPU', ({ engine }) => engine.kv?.gpuBytes)
  optional(
    Gauge,
    'kv_host_bytes',
    'Bytes of K/V in pinned host memory, behind the GPU’s budget',
    ({ engine }) => engine.kv?.hostBytes,
  )
  optional(
    Counter,
    'kv_spills_total',
    'K/V blocks moved from the GPU to the host',
    ({ engine }) => engine.kv?.spills,
  )
  optional(
    Counter,
    'kv_restores_total',
    'K/V blocks moved back',
    ({ engine }) => engine.kv?.restores,
  )
  optional(
    Counter,
    'one_pass_runs_total',
    'Runs of one-pass ranking',
    ({ engine }) => engine.batches?.runs,
  )
  optional(
    Counter,
    'one_pass_users_total',
    'Users ranked in one pass, several of them in one run',
    ({ engine }) => engine.batches?.users,
  )
  addRedisMetrics(registry, () => ranker()?.stats().tier2)
  optional(Gauge, 'redis_connected', '1 while Redis can be asked for stored histories', (stats) => {
    return stats.events.kind === 'redis' ? Number(stats.events.isConnected) : undefined
  })
  optional(Gauge, 'events_users', 'Users with a stored history in this process', ({ events }) => {
    return events.kind === 'memory' ? events.users : undefined
  })
  optional(Gauge, 'events_bytes', 'Bytes of the stored histories in this process', ({ events }) => {
    return events.kind === 'memory' ? events.bytes : undefined
  })
  optional(
    Counter,
    'events_evictions_total',
    'Users whose stored history went for lack of memory',
    ({ events }) => (events.kind === 'memory' ? events.evictions : undefined),
  )
  optional(Counter, 'forgets_total', 'Users forgotten by any replica', ({ forgets }) => {
    return forgets?.received
  })
  optional(
    Counter,
    'forget_gaps_total',
    'Times that forgets may have been missed, so that all K/V of this process was dropped',
    ({ forgets }) => forgets?.gaps,
  )
  new Gauge({
    name: 'peregrine_model_info',
    help: 'The model that serves',
    labelNames: ['name', 'version', 'precision', 'engine'],
    registers,
    collect() {
      this.reset()
      const model = ranker()?.model
      if (model === undefined) return
      const { name, version, precision, engine } = model
      this.set({ name, version, precision, engine }, 1)
    },
  })

  new Gauge({
    name: 'peregrine_kernels_info',
    help: 'The kernel library in use, and what it multiplies in; none where the graphs’ functions run',
    labelNames: ['library', 'arithmetic'],
    registers,
    collect() {
      this.reset()
      const kernels = ranker()?.stats().engine.kernels
      if (kernels === undefined) return
      this.set({ library: basename(kernels.library), arithmetic: kernels.arithmetic }, 1)
    },
  })

  function counter<T extends string = never>(name: string, help: string, labelNames: T[] = []) {
    return new Counter({ name: `peregrine_${name}`, help, labelNames, registers })
  }

  function gauge(name: string, help: string, read: () => number | undefined): void {
    new Gauge({
      name: `peregrine_${name}`,
      help,
      registers,
      collect() {
        this.set(read() ?? 0)
      },
    })
  }

  /** A counter that lives elsewhere. */
  function mirror(name: string, help: string, read: () => number | undefined): void {
    new Counter({
      name: `peregrine_${name}`,
      help,
      registers,
      collect() {
        this.reset()
        this.inc(read() ?? 0)
      },
    })
  }

  /** What not every ranker has: no sample where it has none. */
  function optional(
    Kind: typeof Gauge | typeof Counter,
    name: string,
    help: string,
    read: (stats: RankerStats) => number | undefined,
  ): void {
    const metric = new Kind({
      name: `peregrine_${name}`,
      help,
      registers,
      collect() {
        metric.remove()
        const stats = ranker()?.stats()
        const value = stats === undefined ? undefined : read(stats)
        if (value !== undefined) metric.inc(value)
      },
    })
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
    prefetched({ state, prefilledTokens, reusedTokens }: KvUse): void {
      prefetches.inc({ state })
      prefilled.inc(prefilledTokens)
      reused.inc(reusedTokens)
    },
    appended({ stored, duplicates, trimmed }: Appended): void {
      events.inc({ result: 'stored' }, stored)
      events.inc({ result: 'duplicate' }, duplicates)
      events.inc({ result: 'trimmed' }, trimmed)
    },
    ranked(result: RankResult, retried: number): void {
      const { kv, timings } = result
      lookups.inc({ state: kv.state, tier: String(kv.tier ?? 'none') })
      const { decision, predictedMs = 0, measuredMs = 0 } = kv
      if (decision !== undefined) decisions.inc({ decision })
      // A partial answer took less than was predicted for all of it.
      if (decision !== undefined && predictedMs > 0 && result.scored === result.candidates) {
        predictions.observe({ decision }, measuredMs / predictedMs)
      }
      prefilled.inc(kv.prefilledTokens)
      reused.inc(kv.reusedTokens)
      candidates.inc(result.scored)
      perRequest.observe(result.candidates)
      microBatches.inc(result.microBatches)
      retries.inc(retried)
      for (const { code, count } of result.warnings) warnings.inc({ code }, count)
      stage.observe({ stage: 'sequence' }, timings.sequenceMs / 1000)
      stage.observe({ stage: 'history' }, timings.historyMs / 1000)
      stage.observe({ stage: 'score' }, timings.scoreMs / 1000)
      stage.observe({ stage: 'heads' }, timings.headsMs / 1000)
    },
  }
}
