import type { FunctionProto } from 'onnx-buf'
import type { WeightSource } from './checkpoint.js'
import type { FunctionShape } from './functions.js'
import type { Tokens } from './layer.js'
import type { GraphBuilder } from './onnx.js'
import type { Tensor } from './weight-file.js'

/** What turns a variant's checkpoint into a bundle, beside the layers, which all variants share. */
export type ExportVariant = {
  /**
   * A checkpoint's tensors as graphs and oracle read them: layers under the same names in all variants.
   * @throws {RankError} WEIGHTS_INVALID naming the tensor that does not fit
   */
  checkpoint(source: WeightSource): WeightSource
  /** The bundle's weight file, of what `checkpoint` gave. */
  tensors(source: WeightSource): Map<string, Tensor>
  /** What `checkpoint` gives of seeded random weights. */
  random(seed: number): WeightSource
  readonly graphs: GraphParts
}

/** A variant's own ends of the graphs. Rows are (…, slots) int32; `users` stands behind the tokens. */
export type GraphParts = {
  /** History rows and action masks (…) -> (…, D). */
  history(g: GraphBuilder, rows: string, actions: string, shape: FunctionShape): string
  /** Candidates' rows -> (…, D) of what sees the history: each of them, or one row for all. */
  queries(g: GraphBuilder, rows: string, shape: FunctionShape): string
  /** The last layer's rows of `queries` -> logits (…, tasks) float32. */
  head(g: GraphBuilder, y: Tokens, inputs: HeadInputs, shape: FunctionShape): string
  /** Where a row compares times with another moment than its own. */
  readonly next?: NextTimes
  /** Functions that `history` and `queries` call in float16. */
  functions(shape: FunctionShape): {
    readonly history: readonly FunctionProto[]
    readonly queries: readonly FunctionProto[]
  }
}

export type HeadInputs = {
  /** Candidates' rows (m, [users,] slots). */
  readonly rows: string
  /** (users), or one, int64 seconds. */
  readonly queryTimes: string
}

export type NextTimes = {
  /** Moments ([users,] n) that history rows compare with, of their own times and rows ([users,] n, slots). */
  ofHistory(g: GraphBuilder, times: string, rows: string): string
  /** Seconds from the query rows' own time to the query, float64 (1) or (users, 1); of rows ([users,] m, slots). */
  ofQueries(g: GraphBuilder, rows: string, shape: FunctionShape): string
}
