import { blockOf, divisorOf, type HstuConfig } from '../model/config.js'
import { rowsOf, type WeightSource } from '../model/export/checkpoint.js'
import type { HistoryTokens } from '../model/tokens.js'
import {
  at,
  columns,
  layerNorm,
  linear,
  type Matrix,
  map,
  matrix,
  sideBySide,
  silu,
} from './matrix.js'
import { dlrmEnds } from './oracle/dlrm-v3.js'
import type { ReferenceEnds, Row, Weight } from './oracle/ends.js'
import { paperEnds } from './oracle/paper.js'
import { researchEnds } from './oracle/research.js'

export type ReferenceScores = {
  /** Per layer, after SiLU where the variant applies it: K (n, H·dqk) and V (n, H·dv) of the history. */
  readonly k: readonly Float64Array[]
  readonly v: readonly Float64Array[]
  /** (m, tasks) row-major */
  readonly logits: Float64Array
}

/**
 * The slow oracle: float64, one request, the whole (n+m) x (n+m) attention matrix under an explicit
 * mask; no K/V cache, no micro-batches, no padding. Everything fast is tested against it.
 * `source` is what the variant's exporter gives, `candidates` (m, slots) rows as the graphs take them.
 * @see Zhai et al., "Actions Speak Louder than Words", ICML 2024, sections 3.1 and 3.4
 */
export function createReference(source: WeightSource, config: HstuConfig) {
  const weights = new Map<string, Float64Array>()
  const weight = (name: string): Float64Array => {
    const known = weights.get(name) ?? Float64Array.from(source.read(name))
    weights.set(name, known)
    return known
  }
  const rows = new Map<string, Map<number, Float64Array>>()
  const rowOf = (name: string, row: number): Float64Array => {
    const known = rows.get(name) ?? new Map<number, Float64Array>()
    rows.set(name, known)
    const found = known.get(row) ?? Float64Array.from(rowsOf(source, name, row, row + 1))
    known.set(row, found)
    return found
  }
  const ends = endsOf(config, weight, rowOf)
  return (history: HistoryTokens, candidates: Int32Array, queryTime: number): ReferenceScores => {
    const n = history.length
    let x = ends.embed(history, candidates)
    const total = x.rows
    const { own, compared } = ends.times(history, candidates, queryTime)
    const position = Array.from({ length: total }, (_, i) => Math.min(i, n))
    const sees = (i: number, j: number) => (i < n ? j <= i : j < n || j === i)
    const block = blockOf(config)
    const k: Float64Array[] = []
    const v: Float64Array[] = []
    for (let layer = 0; layer < config.layers; layer++) {
      const w = (name: string) => weight(`layers.${layer}.${name}`)
      const bias = (i: number, j: number) => {
        if (!block.rab) return 0
        const distance = Math.max((position[i] ?? 0) - (position[j] ?? 0), 0)
        const seconds = (compared[i] ?? 0) - (own[j] ?? 0)
        return (
          at(w('pos_w'), Math.min(distance, config.positions - 1)) +
          at(w('time_w'), ends.bucket(seconds))
        )
      }
      const result = runLayer(x, w, config, sees, bias)
      k.push(result.k.slice(0, n * config.heads * config.dqk))
      v.push(result.v.slice(0, n * config.heads * config.dv))
      x = result.y
    }
    const queries = { rows: total - n, cols: x.cols, data: x.data.subarray(n * x.cols) }
    return { k, v, logits: ends.head(queries, candidates, queryTime) }
  }
}

/** The one place that chooses a variant's own ends of the oracle. */
function endsOf(config: HstuConfig, weight: Weight, rowOf: Row): ReferenceEnds {
  switch (config.variant) {
    case 'paper':
      return paperEnds(config, weight, rowOf)
    case 'research':
      return researchEnds(config, rowOf)
    case 'dlrm-v3':
      return dlrmEnds(config, weight, rowOf)
  }
}

type Layer = (name: string) => Float64Array

function runLayer(
  x: Matrix,
  w: Layer,
  config: HstuConfig,
  sees: (i: number, j: number) => boolean,
  bias: (i: number, j: number) => number,
): { readonly y: Matrix; readonly k: Float64Array; readonly v: Float64Array } {
  const { heads, dqk, dv } = config
  const block = blockOf(config)
  const rows = x.rows
  const norm = block.normInAffine
    ? layerNorm(x, config.layerNormEps, w('norm_in.weight'), w('norm_in.bias'))
    : layerNorm(x, config.layerNormEps)
  const uvqk = linear(norm, w('uvqk.weight'), block.uvqkBias ? w('uvqk.bias') : undefined)
  const active = block.silu === 'uvqk' ? silu : (value: number) => value
  const u = map(columns(uvqk, 0, heads * dv), silu)
  const v = map(columns(uvqk, heads * dv, heads * dv), active)
  const q = map(columns(uvqk, 2 * heads * dv, heads * dqk), active)
  const k = map(columns(uvqk, 2 * heads * dv + heads * dqk, heads * dqk), active)
  const a = matrix(rows, heads * dv)
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < rows; j++) {
      if (!sees(i, j)) continue
      const b = bias(i, j)
      for (let h = 0; h < heads; h++) {
        let dot = 0
        for (let d = 0; d < dqk; d++) {
          dot += at(q.data, i * q.cols + h * dqk + d) * at(k.data, j * k.cols + h * dqk + d)
        }
        const score = silu(block.alpha * dot + b) / divisorOf(config)
        for (let d = 0; d < dv; d++) {
          a.data[i * a.cols + h * dv + d] =
            at(a.data, i * a.cols + h * dv + d) + score * at(v.data, j * v.cols + h * dv + d)
        }
      }
    }
  }
  const normed = block.normAttnAffine
    ? layerNorm(a, config.layerNormEps, w('norm_attn.weight'), w('norm_attn.bias'))
    : layerNorm(a, config.layerNormEps)
  const gated = { ...u, data: u.data.map((value, i) => value * at(normed.data, i)) }
  const combined = block.combine === 'concat' ? sideBySide([u, a, gated]) : gated
  const out = linear(combined, w('out.weight'), block.outBias ? w('out.bias') : undefined)
  return {
    y: { ...out, data: out.data.map((value, i) => value + at(x.data, i)) },
    k: k.data,
    v: v.data,
  }
}
