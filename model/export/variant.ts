import type { WeightSource } from './checkpoint.js'
import type { FunctionShape } from './functions.js'
import type { Both, Tokens } from './layer.js'
import type { GraphBuilder } from './onnx.js'
import type { TableTensors } from './table.js'
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
  /** Those of what `checkpoint` gives that become the embedding table. */
  readonly table: TableTensors
  readonly graphs: GraphParts
}

/** A variant's own ends of the graphs. Inputs are ([users,] tokens, …), as the graphs have them. */
export type GraphParts = {
  /** History rows ([users,] n, slots) int32 and action masks ([users,] n) -> (n, [users,] D). */
  history(g: GraphBuilder, rows: string, actions: string, shape: FunctionShape): Tokens
  /** Candidates' rows -> (m, [users,] D) of what sees the history: each of them, or one row for all. */
  queries(g: GraphBuilder, rows: string, shape: FunctionShape): Tokens
  /** `history` and `queries` of a request at once, where float16 has a function for it. */
  request?(
    g: GraphBuilder,
    inputs: { readonly rows: string; readonly actions: string; readonly candidates: string },
    shape: FunctionShape,
  ): Both<Tokens>
  /** The last layer's rows of `queries`, (m, [users,] D) -> logits ([users,] m, tasks) float32. */
  head(g: GraphBuilder, y: Tokens, inputs: HeadInputs, shape: FunctionShape): string
  /** The last layer's row of `queries` -> (1, D) float32 of length 1: the user, for a retrieval head. */
  user?(g: GraphBuilder, y: Tokens, shape: FunctionShape): string
  /** The least norm of an item's row as it is stored; for a retrieval head. */
  readonly itemNormEps?: number
  /** Where a row compares times with another moment than its own. */
  readonly next?: NextTimes
}

export type HeadInputs = {
  /** Candidates' rows ([users,] m, slots). */
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
