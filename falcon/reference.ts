import { blockOf, type HstuConfig } from '../model/config.js'
import { embeddingLayout } from '../model/embedding.js'
import type { WeightSource } from '../model/export/weights.js'
import type { HistoryTokens } from '../model/tokens.js'

/** Row-major float64 matrix. */
type Matrix = { readonly rows: number; readonly cols: number; readonly data: Float64Array }

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
 * `candidates` is (m, slots) rows of the bundle's embedding table.
 * @see Zhai et al., "Actions Speak Louder than Words", ICML 2024, sections 3.1 and 3.4
 */
export function createReference(source: WeightSource, config: HstuConfig) {
  const weights = new Map<string, Float64Array>()
  const weight = (name: string): Float64Array => {
    const known = weights.get(name) ?? Float64Array.from(source.read(name))
    weights.set(name, known)
    return known
  }
  return (history: HistoryTokens, candidates: Int32Array, queryTime: number): ReferenceScores => {
    const n = history.length
    const m = candidates.length / config.itemFeatures.length
    const total = n + m
    const times = [...history.times, ...new Array<number>(m).fill(queryTime)]
    const position = Array.from({ length: total }, (_, i) => Math.min(i, n))
    const sees = (i: number, j: number) => (i < n ? j <= i : j < n || j === i)
    const block = blockOf(config)
    const k: Float64Array[] = []
    const v: Float64Array[] = []
    let x = embed(history, candidates, weight, config)
    for (let layer = 0; layer < config.layers; layer++) {
      const w = (name: string) => weight(`layers.${layer}.${name}`)
      const bias = (i: number, j: number) => {
        if (!block.rab) return 0
        const distance = Math.max((position[i] ?? 0) - (position[j] ?? 0), 0)
        const seconds = (times[i] ?? 0) - (times[j] ?? 0)
        return (
          at(w('pos_w'), Math.min(distance, config.positions - 1)) +
          at(w('time_w'), bucket(seconds))
        )
      }
      const result = runLayer(x, w, config, sees, bias)
      k.push(result.k.slice(0, n * config.heads * config.dqk))
      v.push(result.v.slice(0, n * config.heads * config.dv))
      x = result.y
    }
    const own = { rows: m, cols: x.cols, data: x.data.subarray(n * x.cols) }
    const norm = layerNorm(
      own,
      config.layerNormEps,
      weight('head.norm.weight'),
      weight('head.norm.bias'),
    )
    const hidden = map(linear(norm, weight('head.fc1.weight'), weight('head.fc1.bias')), silu)
    return { k, v, logits: linear(hidden, weight('head.fc2.weight'), weight('head.fc2.bias')).data }
  }
}

/** clamp(floor(ln(max(s, 1)) / 0.301), 0, 127) of a difference in whole seconds. */
export function bucket(seconds: number): number {
  return Math.min(Math.max(Math.floor(Math.log(Math.max(seconds, 1)) / 0.301), 0), 127)
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
        const score = silu(block.alpha * dot + b) / config.maxTokens
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

/** Token and candidate embeddings, times sqrt(D): (n+m, D). */
function embed(
  history: HistoryTokens,
  candidates: Int32Array,
  weight: (name: string) => Float64Array,
  config: HstuConfig,
): Matrix {
  const { tables, slots } = embeddingLayout(config)
  const d = config.dModel
  const n = history.length
  const x = matrix(n + candidates.length / slots, d)
  const add = (token: number, name: string, row: number) => {
    for (let c = 0; c < d; c++) {
      x.data[token * d + c] =
        at(x.data, token * d + c) + Math.sqrt(d) * at(weight(name), row * d + c)
    }
  }
  const addRows = (token: number, rows: Int32Array) => {
    for (const row of rows) {
      if (row === 0) continue
      const table = tables.findLast(({ offset }) => offset <= row)
      if (table !== undefined) add(token, `${table.name}.weight`, row - table.offset)
    }
  }
  for (let i = 0; i < n; i++) {
    addRows(i, history.rows.subarray(i * slots, (i + 1) * slots))
    const mask = history.actions[i] ?? 0
    config.actions.forEach((_, bit) => {
      if ((mask >> bit) & 1) add(i, 'action.weight', bit)
    })
    if ((mask >> config.actions.length) & 1) add(i, 'action_base', 0)
  }
  for (let c = 0; c < candidates.length / slots; c++) {
    addRows(n + c, candidates.subarray(c * slots, (c + 1) * slots))
  }
  return x
}

/** x·sigmoid(x) */
function silu(x: number): number {
  return x / (1 + Math.exp(-x))
}

function layerNorm(x: Matrix, eps: number, gamma?: Float64Array, beta?: Float64Array): Matrix {
  const y = matrix(x.rows, x.cols)
  for (let i = 0; i < x.rows; i++) {
    const row = x.data.subarray(i * x.cols, (i + 1) * x.cols)
    const mean = row.reduce((sum, value) => sum + value, 0) / x.cols
    const variance = row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.cols
    row.forEach((value, c) => {
      const normed = (value - mean) / Math.sqrt(variance + eps)
      y.data[i * x.cols + c] = normed * (gamma?.[c] ?? 1) + (beta?.[c] ?? 0)
    })
  }
  return y
}

/** x·W + b with W (in, out) */
function linear(x: Matrix, w: Float64Array, b?: Float64Array): Matrix {
  const out = w.length / x.cols
  const y = matrix(x.rows, out)
  for (let i = 0; i < x.rows; i++) {
    const row = y.data.subarray(i * out, (i + 1) * out)
    if (b !== undefined) row.set(b)
    // Row by row of w, as it lies in memory: six times as fast as column by column.
    for (let c = 0; c < x.cols; c++) {
      const factor = at(x.data, i * x.cols + c)
      for (let o = 0; o < out; o++) row[o] = at(row, o) + factor * at(w, c * out + o)
    }
  }
  return y
}

function matrix(rows: number, cols: number): Matrix {
  return { rows, cols, data: new Float64Array(rows * cols) }
}

function map(x: Matrix, f: (value: number) => number): Matrix {
  return { ...x, data: x.data.map(f) }
}

function columns(x: Matrix, start: number, count: number): Matrix {
  const y = matrix(x.rows, count)
  for (let i = 0; i < x.rows; i++) {
    y.data.set(x.data.subarray(i * x.cols + start, i * x.cols + start + count), i * count)
  }
  return y
}

function sideBySide(parts: readonly Matrix[]): Matrix {
  const rows = parts[0]?.rows ?? 0
  const y = matrix(
    rows,
    parts.reduce((sum, { cols }) => sum + cols, 0),
  )
  let start = 0
  for (const part of parts) {
    for (let i = 0; i < rows; i++) {
      y.data.set(part.data.subarray(i * part.cols, (i + 1) * part.cols), i * y.cols + start)
    }
    start += part.cols
  }
  return y
}

/** Typed-array read that fails loudly instead of spreading NaN. */
function at(data: Float64Array, index: number): number {
  const value = data[index]
  if (value === undefined) throw new RangeError(`index ${index} beyond ${data.length}`)
  return value
}
