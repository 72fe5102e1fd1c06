// HSTU attention in float64, by its definition, with how far bfloat16 products may be from it.
import type { FunctionShape } from '../model/export/functions.js'

export type AttentionCase = {
  /** (queries, width) rows of [u|v|q|k] of one user. */
  readonly uvqk: Float32Array
  readonly queries: number
  /** K (keys, H·dqk) and V (keys, H·dv), the queries' own not among them. */
  readonly k: Float32Array
  readonly v: Float32Array
  readonly keys: number
  /**
   * The relative bias of a pair: of query i and key j, or of the query's own key (`keys` for a
   * candidate; behind the past for a token).
   */
  readonly bias: (i: number, j: number) => number
  /** Tokens see each other up to themselves; candidates only themselves. */
  readonly causal: boolean
}

/** Of a bf16 number, relative: half a unit in the last place. */
const ROUNDING = 2 ** -8

/**
 * Attention (queries, H·dv) and the largest error of each value when q, k, v and the weights are
 * rounded to bf16 once: what rounding does to q·k goes through SiLU, whose slope is below 1.1.
 */
export function attentionOracle(x: AttentionCase, { config, block }: FunctionShape) {
  const { heads, dqk, dv } = config
  const width = 2 * heads * (dqk + dv)
  const out = new Float64Array(x.queries * heads * dv)
  const bound = new Float64Array(out.length)
  const qAt = (i: number, h: number, c: number) =>
    x.uvqk[i * width + 2 * heads * dv + h * dqk + c] ?? Number.NaN
  const kAt = (j: number, h: number, c: number) =>
    (j < x.keys
      ? x.k[j * heads * dqk + h * dqk + c]
      : x.uvqk[(j - x.keys) * width + 2 * heads * dv + (heads + h) * dqk + c]) ?? Number.NaN
  const vAt = (j: number, h: number, c: number) =>
    (j < x.keys
      ? x.v[j * heads * dv + h * dv + c]
      : x.uvqk[(j - x.keys) * width + heads * dv + h * dv + c]) ?? Number.NaN
  for (let i = 0; i < x.queries; i++) {
    const own = x.keys + i
    const seen = Array.from({ length: x.causal ? own : x.keys }, (_, j) => j)
    for (let h = 0; h < heads; h++) {
      for (const j of [...seen, own]) {
        let dot = 0
        let size = 0
        for (let c = 0; c < dqk; c++) {
          const term = qAt(i, h, c) * kAt(j, h, c)
          dot += term
          size += Math.abs(term)
        }
        const s = block.alpha * dot + x.bias(i, x.causal ? j : Math.min(j, x.keys))
        const weight = s / (1 + Math.exp(-s))
        const slack = 1.1 * block.alpha * 2 * ROUNDING * size + 2.2 * ROUNDING * Math.abs(weight)
        for (let c = 0; c < dv; c++) {
          const at = i * heads * dv + h * dv + c
          out[at] = (out[at] ?? 0) + (weight * vAt(j, h, c)) / config.maxTokens
          bound[at] = (bound[at] ?? 0) + (slack * Math.abs(vAt(j, h, c))) / config.maxTokens
        }
      }
    }
  }
  return { out, bound }
}
