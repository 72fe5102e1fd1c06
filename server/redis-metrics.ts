import { Counter, Gauge, type Registry } from 'prom-client'
import type { Tier2Stats } from '../falcon/types.js'

/** Metrics of tier 2, read at scrape time; without Redis they have no samples. */
export function addRedisMetrics(registry: Registry, read: () => Tier2Stats | undefined): void {
  const registers = [registry]

  function counters(name: string, help: string, values: (stats: Tier2Stats) => Counts): void {
    new Counter({
      name: `peregrine_kv_redis_${name}_total`,
      help,
      labelNames: ['outcome'],
      registers,
      collect() {
        this.reset()
        const stats = read()
        if (stats === undefined) return
        for (const [outcome, count] of Object.entries(values(stats))) this.inc({ outcome }, count)
      },
    })
  }

  function single(
    Kind: typeof Gauge | typeof Counter,
    name: string,
    help: string,
    value: (stats: Tier2Stats) => number,
  ): void {
    const metric = new Kind({
      name: `peregrine_kv_redis_${name}`,
      help,
      registers,
      collect() {
        metric.remove()
        const stats = read()
        if (stats !== undefined) metric.inc(value(stats))
      },
    })
  }

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
