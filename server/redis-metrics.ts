import type { Registry } from 'prom-client'
import type { Tier2Stats } from '../falcon/types.js'
import { addPerModel, type PerModel } from './models/metrics.js'
import type { LoadedModel } from './models/source.js'

type RedisMetric = Omit<PerModel, 'read'> & {
  readonly read: (stats: Tier2Stats) => ReturnType<PerModel['read']>
}

const METRICS: readonly RedisMetric[] = [
  {
    kind: 'counter',
    name: 'lookups_total',
    help: 'Calls to Redis for K/V by outcome; open: not tried, for the circuit is',
    labelNames: ['outcome'],
    read: ({ lookups }) => byOutcome(lookups),
  },
  {
    kind: 'counter',
    name: 'writes_total',
    help: 'K/V offered to Redis by what became of it',
    labelNames: ['outcome'],
    read: ({ writes: { queued, queuedBytes, bytes, ...outcomes } }) => byOutcome(outcomes),
  },
  {
    kind: 'gauge',
    name: 'circuit_open',
    help: '1 while Redis is not asked',
    read: ({ isOpen }) => Number(isOpen),
  },
  {
    kind: 'counter',
    name: 'circuit_opened_total',
    help: 'Times the circuit went open',
    read: ({ opened }) => opened,
  },
  {
    kind: 'counter',
    name: 'read_bytes_total',
    help: "K/V fetched, in bytes of the bundle's precision",
    read: ({ readBytes }) => readBytes,
  },
  {
    kind: 'counter',
    name: 'written_bytes_total',
    help: "K/V written, in bytes of the bundle's precision",
    read: ({ writes }) => writes.bytes,
  },
  {
    kind: 'gauge',
    name: 'queued_bytes',
    help: 'K/V that waits to be written, in bytes of tier 1',
    read: ({ writes }) => writes.queuedBytes,
  },
]

/** Metrics of tier 2, by model; without Redis they have no samples. */
export function addRedisMetrics(registry: Registry, models: () => readonly LoadedModel[]): void {
  for (const { name, read, ...metric } of METRICS) {
    addPerModel(registry, models, {
      ...metric,
      name: `kv_redis_${name}`,
      read: ({ tier2 }) => tier2 && read(tier2),
    })
  }
}

function byOutcome(counts: Readonly<Record<string, number>>) {
  return Object.entries(counts).map(([outcome, value]) => ({ labels: { outcome }, value }))
}
