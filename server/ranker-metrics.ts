import { basename } from 'node:path'
import type { Registry } from 'prom-client'
import { addModelMetrics, addPerModel, type PerModel } from './models/metrics.js'
import type { LoadedModel } from './models/source.js'
import { addRedisMetrics } from './redis-metrics.js'
import { addScraped } from './scraped.js'

const METRICS: readonly PerModel[] = [
  {
    kind: 'gauge',
    name: 'engine_pending_jobs',
    help: 'Engine jobs accepted and not yet answered',
    read: ({ engine }) => engine.pendingJobs,
  },
  {
    kind: 'gauge',
    name: 'engine_workers',
    help: 'Engine workers that can take jobs',
    read: ({ engine }) => engine.workers,
  },
  {
    kind: 'counter',
    name: 'engine_restarts_total',
    help: 'Workers that crashed and were replaced',
    read: ({ engine }) => engine.restarts,
  },
  {
    kind: 'gauge',
    name: 'kv_entries',
    help: 'Users in the K/V cache',
    read: ({ cache }) => cache.entries,
  },
  {
    kind: 'gauge',
    name: 'kv_bytes',
    help: 'Bytes in the K/V cache',
    read: ({ cache }) => cache.kvBytes,
  },
  {
    kind: 'gauge',
    name: 'kv_max_bytes',
    help: 'Budget of the K/V cache',
    read: ({ cache }) => cache.maxKvBytes,
  },
  {
    kind: 'counter',
    name: 'kv_evictions_total',
    help: 'K/V entries evicted',
    read: ({ cache }) => cache.evictions,
  },
  {
    kind: 'gauge',
    name: 'kv_break_even_tokens',
    help: 'History length from which K/V is fetched from tier 2 sooner than computed',
    read: ({ costs }) => costs?.breakEvenTokens,
  },
  {
    kind: 'gauge',
    name: 'kv_fetch_bytes_per_second',
    help: 'Predicted throughput of tier 2',
    read: ({ costs }) => costs?.fetchBytesPerSec,
  },
  {
    kind: 'gauge',
    name: 'prefill_tokens_per_second',
    help: 'Predicted throughput of a prefill of the longest history',
    read: ({ costs }) => costs?.prefillTokensPerSec,
  },
  {
    kind: 'gauge',
    name: 'kv_gpu_bytes',
    help: 'Bytes of K/V on the GPU',
    read: ({ engine }) => engine.kv?.gpuBytes,
  },
  {
    kind: 'gauge',
    name: 'kv_host_bytes',
    help: 'Bytes of K/V in pinned host memory, behind the GPU’s budget',
    read: ({ engine }) => engine.kv?.hostBytes,
  },
  {
    kind: 'counter',
    name: 'kv_spills_total',
    help: 'K/V blocks moved from the GPU to the host',
    read: ({ engine }) => engine.kv?.spills,
  },
  {
    kind: 'counter',
    name: 'kv_restores_total',
    help: 'K/V blocks moved back',
    read: ({ engine }) => engine.kv?.restores,
  },
  {
    kind: 'counter',
    name: 'one_pass_runs_total',
    help: 'Runs of one-pass ranking',
    read: ({ engine }) => engine.batches?.runs,
  },
  {
    kind: 'counter',
    name: 'one_pass_users_total',
    help: 'Users ranked in one pass, several of them in one run',
    read: ({ engine }) => engine.batches?.users,
  },
  {
    kind: 'gauge',
    name: 'kernels_info',
    help: 'The kernel library in use, and what it multiplies in; none where the graphs’ functions run',
    labelNames: ['library', 'arithmetic'],
    read: ({ engine: { kernels } }) =>
      kernels && [
        {
          labels: { library: basename(kernels.library), arithmetic: kernels.arithmetic },
          value: 1,
        },
      ],
  },
]

/** Of the stored histories, which all models share. */
const STORE_METRICS: readonly PerModel[] = [
  {
    kind: 'gauge',
    name: 'redis_connected',
    help: '1 while Redis can be asked for stored histories',
    read: ({ events }) => (events.kind === 'redis' ? Number(events.isConnected) : undefined),
  },
  {
    kind: 'gauge',
    name: 'events_users',
    help: 'Users with a stored history in this process',
    read: ({ events }) => (events.kind === 'memory' ? events.users : undefined),
  },
  {
    kind: 'gauge',
    name: 'events_bytes',
    help: 'Bytes of the stored histories in this process',
    read: ({ events }) => (events.kind === 'memory' ? events.bytes : undefined),
  },
  {
    kind: 'counter',
    name: 'events_evictions_total',
    help: 'Users whose stored history went for lack of memory',
    read: ({ events }) => (events.kind === 'memory' ? events.evictions : undefined),
  },
  {
    kind: 'counter',
    name: 'forgets_total',
    help: 'Users forgotten by any replica',
    read: ({ forgets }) => forgets?.received,
  },
  {
    kind: 'counter',
    name: 'forget_gaps_total',
    help: 'Times that forgets may have been missed, so that all K/V of this process was dropped',
    read: ({ forgets }) => forgets?.gaps,
  },
]

/** Metrics of what the layers below count. */
export function addRankerMetrics(registry: Registry, models: () => readonly LoadedModel[]): void {
  const first = () => models()[0]?.ranker
  for (const metric of METRICS) addPerModel(registry, models, metric)
  for (const { read, ...metric } of STORE_METRICS) {
    addScraped(registry, {
      ...metric,
      read: () => {
        const stats = first()?.stats()
        return stats && read(stats)
      },
    })
  }
  addRedisMetrics(registry, models)
  addModelMetrics(registry, models)
  addScraped(registry, {
    kind: 'gauge',
    name: 'gpu_memory_used_bytes',
    help: 'Memory in use on the GPU, by every process',
    read: () => first()?.gpuMemory?.()?.usedBytes,
  })
  addScraped(registry, {
    kind: 'gauge',
    name: 'gpu_memory_total_bytes',
    help: 'Memory of the GPU',
    read: () => first()?.gpuMemory?.()?.totalBytes,
  })
}
