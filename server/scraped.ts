import { Counter, Gauge, type Registry } from 'prom-client'

/** One value of a metric with labels. */
export type Sample = {
  readonly labels: { readonly [name: string]: string }
  readonly value: number
}

export type Scraped = {
  readonly kind: 'counter' | 'gauge'
  /** Without the prefix `peregrine_`. */
  readonly name: string
  readonly help: string
  readonly labelNames?: readonly string[]
  /** A number where there are no labels; undefined where there is nothing to say: no sample then. */
  readonly read: () => number | readonly Sample[] | undefined
}

const KINDS = { counter: Counter, gauge: Gauge }

/** Registers a metric whose value is kept elsewhere, and read whenever somebody scrapes. */
export function addScraped(registry: Registry, scraped: Scraped): void {
  const { kind, name, help, labelNames = [], read } = scraped
  const metric = new KINDS[kind]({
    name: `peregrine_${name}`,
    help,
    labelNames,
    registers: [registry],
    collect() {
      // A reset would leave a 0 where there are no labels.
      if (labelNames.length === 0) metric.remove()
      else metric.reset()
      const found = read()
      if (found === undefined) return
      const samples = typeof found === 'number' ? [{ labels: {}, value: found }] : found
      for (const { labels, value } of samples) metric.inc(labels, value)
    },
  })
}
