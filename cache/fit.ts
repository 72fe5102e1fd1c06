/** One measurement: how much of each term there was, and what all of it took. */
export type FitPoint = { readonly terms: readonly number[]; readonly value: number }

/** Terms that the points cannot tell apart leave less than this of a pivot of 1. */
const SINGULAR = 1e-9

/**
 * Factors >= 0, one per term, that bring sum(factor x term) closest to the values: least squares of
 * the relative errors, so that a run of 1 ms counts as much as one of 300. Exact: every subset of the
 * terms is solved, few for the handful that a cost has.
 *
 * @param points - values above 0
 */
export function nonNegativeFit(points: readonly FitPoint[], terms: number): number[] {
  // Columns of length 1: terms run from 1 to millions, and their products are to be solved.
  const lengths = Array.from({ length: terms }, (_, t) =>
    Math.hypot(...points.map((point) => (point.terms[t] ?? 0) / point.value)),
  )
  const rows = points.map((point) =>
    lengths.map((length, t) => (length === 0 ? 0 : (point.terms[t] ?? 0) / point.value / length)),
  )
  let best = new Array<number>(terms).fill(0)
  let least = points.length
  for (let subset = 1; subset < 2 ** terms; subset++) {
    const chosen = lengths.flatMap((_, t) => ((subset >> t) & 1 ? [t] : []))
    const solved = solve(normalEquations(rows, chosen))
    if (solved === undefined || solved.some((factor) => factor < 0)) continue
    const factors = new Array<number>(terms).fill(0)
    for (const [i, t] of chosen.entries()) factors[t] = solved[i] ?? 0
    const error = rows.reduce((sum, row) => sum + (dot(row, factors) - 1) ** 2, 0)
    if (error < least) {
      least = error
      best = factors
    }
  }
  return best.map((factor, t) => (factor === 0 ? 0 : factor / (lengths[t] ?? 1)))
}

/** A'A | A'1 over the chosen columns. */
function normalEquations(
  rows: readonly (readonly number[])[],
  chosen: readonly number[],
): number[][] {
  const column = (t: number) => rows.map((row) => row[t] ?? 0)
  return chosen.map((i) => [
    ...chosen.map((j) => dot(column(i), column(j))),
    column(i).reduce((sum, value) => sum + value, 0),
  ])
}

/** Gauss-Jordan; the matrix is symmetric and not indefinite, so its diagonal has the pivots. */
function solve(rows: number[][]): number[] | undefined {
  const n = rows.length
  for (const [i, row] of rows.entries()) {
    const pivot = row[i] ?? 0
    if (pivot < SINGULAR) return undefined
    for (const other of rows) {
      if (other === row) continue
      const factor = (other[i] ?? 0) / pivot
      for (let k = i; k <= n; k++) other[k] = (other[k] ?? 0) - factor * (row[k] ?? 0)
    }
  }
  return rows.map((row, i) => (row[n] ?? 0) / (row[i] ?? 1))
}

function dot(a: readonly number[], b: readonly number[]): number {
  return a.reduce((sum, value, i) => sum + value * (b[i] ?? 0), 0)
}
