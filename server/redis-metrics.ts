import { Counter, Gauge, type Registry } from 'prom-client'
import type { Tier2Stats } from '../falcon/types.js'
import { perModelMetrics } from './models/metrics.js'
import type { LoadedModel } from './models/source.js'

/** Metrics of tier 2, read at scrape time; without Redis they have no samples. */
export function addRedisMetrics(registry: Registry, models: () => readonly LoadedModel[]): void {
  const registers = [registry]

  function counters(name: string, help: string, values: (stats: Tier2Stats) => Counts): void {
    new Counter({
      name: `peregrine_kv_redis_${name}_total`,
      help,
      labelNames: ['model', 'outcome'],
      registers,
      collect() {
        this.reset()
        for (const { id: model, ranker } of models()) {
          const { tier2 } = ranker.stats()
          if (tier2 === undefined) continue
          for (const [outcome, count] of Object.entries(values(tier2))) {
            this.inc({ model, outcome }, count)
          }
        }
      },
    })
  }

  const perModel = perModelMetrics(registry, models)
  const single = (
    Kind: typeof Gauge | typeof Counter,
    name: string,
    help: string,
    value: (stats: Tier2Stats) => number,
  ) => perModel(Kind, `kv_redis_${name}`, help, ({ tier2 }) => tier2 && value(tier2))

  counters(
    'lookups',
    'Calls to Redis for K/V by outcome; open: not tried, for the circuit is',
    ({ lookups }) => lookups,
  )
  counters('writes', 'K/V offered to Redis by what became of it', ({ writes }) => {
    const { queued, queuedBytes, bytes, ...outcomes } = writes
    return outcomes
  })
  single(Gauge, 'circuit_open', '1 while Redis is not asked', ({ isOpen }) => Number(isOpen))
  single(Counter, 'circuit_opened_total', 'Times the circuit went open', ({ opened }) => opened)
  single(
    Counter,
    'read_bytes_total',
    "K/V fetched, in bytes of the bundle's precision",
    ({ readBytes }) => readBytes,
  )
  single(
    Counter,
    'written_bytes_total',
    "K/V written, in bytes of the bundle's precision",
    ({ writes }) => writes.bytes,
  )
  single(
    Gauge,
    'queued_bytes',
    'K/V that waits to be written, in bytes of tier 1',
    ({ writes }) => writes.queuedBytes,
  )
}

type Counts = Readonly<Record<string, number>>
