export type TwoCosts = { readonly x: number; readonly fetch: number; readonly compute: number }

/**
 * Where fetching and computing cost the same, between the two neighbouring points at which the cheaper
 * one changes last; straight lines on logarithmic axes. Undefined where one is cheaper at every point.
 */
export function breakEven(points: readonly TwoCosts[]): { x: number; y: number } | undefined {
  const sorted = points.toSorted((a, b) => a.x - b.x)
  for (let i = sorted.length - 1; i > 0; i--) {
    const [a, b] = [sorted[i - 1], sorted[i]]
    if (a === undefined || b === undefined) continue
    // Logarithm of compute / fetch: 0 where they are equal.
    const left = Math.log(a.compute / a.fetch)
    const right = Math.log(b.compute / b.fetch)
    if (left > 0 === right > 0) continue
    const share = left / (left - right)
    const between = (from: number, to: number) => from * (to / from) ** share
    return { x: between(a.x, b.x), y: between(a.fetch, b.fetch) }
  }
  return undefined
}
