import type { ConfigOf } from '../../model/config.js'
import { embeddingLayout } from '../../model/schemes.js'
import type { HistoryTokens } from '../../model/tokens.js'
import { at, layerNorm, linear, type Matrix, map, matrix, silu } from '../matrix.js'
import type { ReferenceEnds, Row, Weight } from './ends.js'

export function paperEnds(config: ConfigOf<'paper'>, weight: Weight, rowOf: Row): ReferenceEnds {
  const linearOf = (x: Matrix, name: string) =>
    linear(x, weight(`${name}.weight`), weight(`${name}.bias`))
  return {
    embed: (history, candidates) => embed(history, candidates, weight, rowOf, config),
    times(history, candidates, queryTime) {
      const m = candidates.length / config.itemFeatures.length
      const own = [...history.times, ...new Array<number>(m).fill(queryTime)]
      return { own, compared: own }
    },
    bucket,
    head(rows) {
      const affine = [weight('head.norm.weight'), weight('head.norm.bias')] as const
      const norm = layerNorm(rows, config.layerNormEps, ...affine)
      return linearOf(map(linearOf(norm, 'head.fc1'), silu), 'head.fc2').data
    },
  }
}

/** clamp(floor(ln(max(s, 1)) / 0.301), 0, 127) of a difference in whole seconds. */
export function bucket(seconds: number): number {
  return Math.min(Math.max(Math.floor(Math.log(Math.max(seconds, 1)) / 0.301), 0), 127)
}

/** Token and candidate embeddings, times sqrt(D): (n+m, D). */
function embed(
  history: HistoryTokens,
  candidates: Int32Array,
  weight: Weight,
  rowOf: Row,
  config: ConfigOf<'paper'>,
): Matrix {
  const { tables, slots } = embeddingLayout(config)
  const d = config.dModel
  const n = history.length
  const x = matrix(n + candidates.length / slots, d)
  const add = (token: number, values: Float64Array) => {
    for (let c = 0; c < d; c++) {
      x.data[token * d + c] = at(x.data, token * d + c) + Math.sqrt(d) * at(values, c)
    }
  }
  const addRows = (token: number, rows: Int32Array) => {
    for (const row of rows) {
      if (row === 0) continue
      const table = tables.findLast(({ offset }) => offset <= row)
      if (table !== undefined) add(token, rowOf(`${table.name}.weight`, row - table.offset))
    }
  }
  for (let i = 0; i < n; i++) {
    addRows(i, history.rows.subarray(i * slots, (i + 1) * slots))
    const mask = history.actions[i] ?? 0
    config.actions.forEach((_, bit) => {
      if ((mask >> bit) & 1) add(i, rowOf('action.weight', bit))
    })
    if ((mask >> config.actions.length) & 1) add(i, weight('action_base'))
  }
  for (let c = 0; c < candidates.length / slots; c++) {
    addRows(n + c, candidates.subarray(c * slots, (c + 1) * slots))
  }
  return x
}
