/** A straight line through measured points; pure. */

export type Point = { readonly x: number; readonly y: number }

export type Line = {
  readonly intercept: number
  readonly slope: number
  /** Share of the variance that the line explains, 0 to 1. */
  readonly r2: number
}

/** Least squares; undefined where the points have no two different x. */
export function fitLine(points: readonly Point[]): Line | undefined {
  const meanX = mean(points.map(({ x }) => x))
  const meanY = mean(points.map(({ y }) => y))
  const sum = (of: (point: Point) => number) => points.reduce((total, p) => total + of(p), 0)
  const xx = sum(({ x }) => (x - meanX) ** 2)
  if (!(xx > 0)) return undefined
  const slope = sum(({ x, y }) => (x - meanX) * (y - meanY)) / xx
  const intercept = meanY - slope * meanX
  const yy = sum(({ y }) => (y - meanY) ** 2)
  const left = sum(({ x, y }) => (y - intercept - slope * x) ** 2)
  return { intercept, slope, r2: yy === 0 ? 1 : 1 - left / yy }
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  const upper = sorted[middle] ?? Number.NaN
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2
}

/** Round numbers from 0 up to the first that is no less than `max`: about `wanted` of them. */
export function ticks(max: number, wanted = 5): number[] {
  if (!(max > 0)) return [0, 1]
  const rough = max / wanted
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10)
  return Array.from({ length: Math.ceil(max / step - 1e-9) + 1 }, (_, i) => i * step)
}

function mean(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0) / values.length
}
