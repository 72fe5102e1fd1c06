/** Value at quantile `q` in [0, 1] of unsorted samples (nearest rank). */
export function quantile(samples: readonly number[], q: number): number {
  const sorted = samples.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN
}

export function median(samples: readonly number[]): number {
  return quantile(samples, 0.5)
}

/** Median and quartiles. */
export type Spread = { readonly lower: number; readonly median: number; readonly upper: number }

export function spreadOf(samples: readonly number[]): Spread {
  const [lower = 0, middle = 0, upper = 0] = [0.25, 0.5, 0.75].map((q) => quantile(samples, q))
  return { lower, median: middle, upper }
}

export function spreadText({ lower, median: middle, upper }: Spread): string {
  return `${middle.toFixed(2)} (${lower.toFixed(2)} to ${upper.toFixed(2)})`
}

export type LinearFit = { readonly slope: number; readonly intercept: number; readonly r2: number }

/** Least-squares line through (x, y), with its coefficient of determination. */
export function linearFit(
  points: readonly { readonly x: number; readonly y: number }[],
): LinearFit {
  const n = points.length
  const mean = (values: readonly number[]) => values.reduce((sum, v) => sum + v, 0) / n
  const meanX = mean(points.map(({ x }) => x))
  const meanY = mean(points.map(({ y }) => y))
  const sxy = mean(points.map(({ x, y }) => (x - meanX) * (y - meanY)))
  const sxx = mean(points.map(({ x }) => (x - meanX) ** 2))
  const slope = sxy / sxx
  const intercept = meanY - slope * meanX
  const residual = mean(points.map(({ x, y }) => (y - slope * x - intercept) ** 2))
  const total = mean(points.map(({ y }) => (y - meanY) ** 2))
  return { slope, intercept, r2: 1 - residual / total }
}

/** Median milliseconds of `run`, after `warmUp` calls that do not count. */
export async function medianMs(
  run: () => Promise<unknown>,
  repeats: number,
  warmUp = 1,
): Promise<number> {
  const times: number[] = []
  for (let i = -warmUp; i < repeats; i++) {
    const start = performance.now()
    await run()
    if (i >= 0) times.push(performance.now() - start)
  }
  return median(times)
}

/**
 * Calls per second of all callers together for about `ms`; each waits for its call before it makes the
 * next, and is told how many it made.
 */
export async function callsPerSecond(
  callers: readonly ((made: number) => Promise<unknown>)[],
  ms: number,
): Promise<number> {
  const start = performance.now()
  let done = 0
  const repeat = async (call: (made: number) => Promise<unknown>) => {
    for (let made = 0; performance.now() - start < ms; made++) {
      await call(made)
      done++
    }
  }
  await Promise.all(callers.map(repeat))
  return (1000 * done) / (performance.now() - start)
}

/** Student's t for 95 % of both sides, by degrees of freedom from 1. */
const T_95 = [12.7, 4.3, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.2, 2.18]
const BLOCKS = 10

/**
 * Least-squares slope with its 95 % confidence interval, over the means of ten blocks in order: what
 * follows one another closely is alike, and would make the interval too narrow.
 */
export function slopeOf(points: readonly { readonly x: number; readonly y: number }[]) {
  const mean = (values: readonly number[]) => values.reduce((sum, v) => sum + v, 0) / values.length
  const blocks = Array.from({ length: BLOCKS }, (_, i) => {
    const part = points.slice(
      Math.floor((i * points.length) / BLOCKS),
      Math.floor(((i + 1) * points.length) / BLOCKS),
    )
    return { x: mean(part.map(({ x }) => x)), y: mean(part.map(({ y }) => y)) }
  })
  const { slope, intercept } = linearFit(blocks)
  const meanX = mean(blocks.map(({ x }) => x))
  const sxx = blocks.reduce((sum, { x }) => sum + (x - meanX) ** 2, 0)
  const rest = blocks.reduce((sum, { x, y }) => sum + (y - slope * x - intercept) ** 2, 0)
  const error = Math.sqrt(rest / (BLOCKS - 2) / sxx)
  return { slope, plusMinus: (T_95[BLOCKS - 3] ?? Number.NaN) * error }
}
