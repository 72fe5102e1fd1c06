/** Prometheus' text format, as far as /metrics writes it; pure. */

export type Sample = {
  readonly name: string
  readonly labels: ReadonlyMap<string, string>
  readonly value: number
}

export type Labels = { readonly [name: string]: string }

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g
const ESCAPES = new Map([
  ['\\n', '\n'],
  ['\\"', '"'],
  ['\\\\', '\\'],
])

/** Every sample of the text; lines that are none, comments among them, are left out. */
export function parseExposition(text: string): Sample[] {
  return text.split('\n').flatMap((line) => {
    const [, name, labels = '', value = ''] = LINE.exec(line) ?? []
    return name === undefined ? [] : [{ name, labels: readLabels(labels), value: numberOf(value) }]
  })
}

/** Sum over the samples of that name that carry these labels; undefined when there are none. */
export function total(
  samples: readonly Sample[],
  name: string,
  labels: Labels = {},
): number | undefined {
  const found = samples.filter((sample) => sample.name === name && carries(sample, labels))
  return found.length === 0 ? undefined : found.reduce((sum, { value }) => sum + value, 0)
}

/** Sums by the values of one label, in the order they appear. */
export function totalsBy(
  samples: readonly Sample[],
  name: string,
  label: string,
  labels: Labels = {},
): Map<string, number> {
  const totals = new Map<string, number>()
  for (const sample of samples) {
    const key = sample.labels.get(label)
    if (sample.name !== name || key === undefined || !carries(sample, labels)) continue
    totals.set(key, (totals.get(key) ?? 0) + sample.value)
  }
  return totals
}

/**
 * A quantile of a histogram, linear within its bucket as in PromQL's histogram_quantile; undefined
 * while it has no observations. The last finite bound stands for everything beyond it.
 */
export function quantile(
  samples: readonly Sample[],
  name: string,
  q: number,
  labels: Labels = {},
): number | undefined {
  const buckets = [...totalsBy(samples, `${name}_bucket`, 'le', labels)]
    .map(([le, count]) => ({ le: numberOf(le), count }))
    .sort((a, b) => a.le - b.le)
  const all = buckets.at(-1)?.count ?? 0
  if (all === 0) return undefined
  let below = { le: 0, count: 0 }
  for (const bucket of buckets) {
    if (bucket.count >= q * all) {
      if (bucket.le === Number.POSITIVE_INFINITY) return below.le
      const inside = (q * all - below.count) / (bucket.count - below.count)
      return below.le + (bucket.le - below.le) * (Number.isFinite(inside) ? inside : 1)
    }
    below = bucket
  }
  return below.le
}

function carries(sample: Sample, labels: Labels): boolean {
  return Object.entries(labels).every(([name, value]) => sample.labels.get(name) === value)
}

function readLabels(text: string): ReadonlyMap<string, string> {
  const unescaped = (value: string) => value.replace(/\\./g, (pair) => ESCAPES.get(pair) ?? pair)
  return new Map(
    [...text.matchAll(LABEL)].map(([, name = '', value = '']) => [name, unescaped(value)]),
  )
}

function numberOf(text: string): number {
  return text === '+Inf' ? Number.POSITIVE_INFINITY : Number(text)
}
