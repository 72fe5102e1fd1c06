import type { HistoryTokens } from '../../model/tokens.js'
import type { Matrix } from '../matrix.js'

/** A weight by its name in the bundle, float64. */
export type Weight = (name: string) => Float64Array

/** A row of one along its first axis, float64: of tables, which may be larger than memory. */
export type Row = (name: string, row: number) => Float64Array

/** What differs between variants in the oracle: all but the layers. */
export type ReferenceEnds = {
  /** Rows of the history, then of what sees it: the candidates, or one for all of them. (n+q, D) */
  embed(history: HistoryTokens, candidates: Int32Array): Matrix
  /** Of those rows: their own times, and the moments that they compare these with. Seconds. */
  times(
    history: HistoryTokens,
    candidates: Int32Array,
    queryTime: number,
  ): { readonly own: readonly number[]; readonly compared: readonly number[] }
  /** Row of the layers' time table for a difference in seconds. */
  bucket(seconds: number): number
  /** Last-layer rows (q, D) of `embed` -> logits (m, tasks). */
  head(rows: Matrix, candidates: Int32Array, queryTime: number): Float64Array
}
