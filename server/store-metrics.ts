import { Counter, Gauge, type Registry } from 'prom-client'
import type { RankerStats } from '../falcon/types.js'

/** Metrics of the stored histories, which all models share, read at scrape time. */
export function addStoreMetrics(registry: Registry, read: () => RankerStats | undefined): void {
  const add = (
    Kind: typeof Gauge | typeof Counter,
    name: string,
    help: string,
    value: (stats: RankerStats) => number | undefined,
  ) => {
    const metric = new Kind({
      name: `peregrine_${name}`,
      help,
      registers: [registry],
      collect() {
        metric.remove()
        const stats = read()
        const found = stats === undefined ? undefined : value(stats)
        if (found !== undefined) metric.inc(found)
      },
    })
  }
  add(Gauge, 'redis_connected', '1 while Redis can be asked for stored histories', (stats) => {
    return stats.events.kind === 'redis' ? Number(stats.events.isConnected) : undefined
  })
  add(Gauge, 'events_users', 'Users with a stored history in this process', ({ events }) => {
    return events.kind === 'memory' ? events.users : undefined
  })
  add(Gauge, 'events_bytes', 'Bytes of the stored histories in this process', ({ events }) => {
    return events.kind === 'memory' ? events.bytes : undefined
  })
  add(
    Counter,
    'events_evictions_total',
    'Users whose stored history went for lack of memory',
    ({ events }) => (events.kind === 'memory' ? events.evictions : undefined),
  )
  add(Counter, 'forgets_total', 'Users forgotten by any replica', ({ forgets }) => {
    return forgets?.received
  })
  add(
    Counter,
    'forget_gaps_total',
    'Times that forgets may have been missed, so that all K/V of this process was dropped',
    ({ forgets }) => forgets?.gaps,
  )
}
