import type { ConfigOf } from '../../model/config.js'
import { DLRM_EPS } from '../../model/dlrm-v3/config.js'
import { slotsOf } from '../../model/dlrm-v3/tokens.js'
import type { HistoryTokens } from '../../model/tokens.js'
import { at, layerNorm, linear, type Matrix, matrix, sideBySide } from '../matrix.js'
import type { ReferenceEnds, Row, Weight } from './ends.js'

/** (seconds, units in a period) of the time features. */
const PERIODS = [
  [3600, 24],
  [86_400, 7],
] as const

export function dlrmEnds(config: ConfigOf<'dlrm-v3'>, weight: Weight, rowOf: Row): ReferenceEnds {
  const { stated, dModel: d } = config
  const eps = stated.layerNormEps ?? DLRM_EPS
  const slot = slotsOf(config)
  const names = config.itemFeatures.map(({ name }) => name)
  const affine = (name: string) => [weight(`${name}.weight`), weight(`${name}.bias`)] as const

  /** Rows of a table, one for each token, by the number in the token's slot `s`. */
  const gather = (rows: Int32Array, s: number, table: string, width: number): Matrix => {
    const count = rows.length / slot.all
    const out = matrix(count, width)
    for (let i = 0; i < count; i++) {
      const row = rows[i * slot.all + s] ?? 0
      out.data.set(rowOf(table, row), i * width)
    }
    return out
  }
  const features = (rows: Int32Array, which: readonly number[]) =>
    sideBySide(which.map((s) => gather(rows, s, 'embedding', stated.tableDim)))

  const hiddenOf = (name: string, x: Matrix): Matrix => {
    const hidden = linear(x, ...affine(`${name}.0`))
    const gate = layerNorm(hidden, eps.mlps, ...affine(`${name}.1`))
    const swished = hidden.data.map((value, i) => value / (1 + Math.exp(-at(gate.data, i))))
    return linear({ ...hidden, data: swished }, ...affine(`${name}.2`))
  }
  const mlp = (name: string, x: Matrix) =>
    layerNorm(hiddenOf(name, x), eps.mlps, ...affine(`${name}.3`))

  /** Tokens whose action vectors are given, before positions. */
  const tokensOf = (rows: Int32Array, actions: Matrix): Matrix => {
    const extras = names.map((_, s) => s).slice(1)
    const parts = [
      mlp('content', features(rows, [0])),
      mlp('action', actions),
      ...(extras.length > 0 ? [mlp('extra', features(rows, extras))] : []),
    ]
    const x = matrix(actions.rows, d)
    x.data.forEach((_, i) => {
      x.data[i] = parts.reduce((sum, { data }) => sum + at(data, i), 0)
    })
    return x
  }
  const place = (x: Matrix, rows: Int32Array): Matrix => {
    const position = gather(rows, slot.position, 'position', d)
    const time = gather(rows, slot.time, 'time', d)
    const data = x.data.map(
      (value, i) => value * Math.sqrt(d) + at(position.data, i) + at(time.data, i),
    )
    return { ...x, data }
  }

  const historyRows = ({ rows, actions, length }: HistoryTokens): Matrix => {
    const { actionDim, actionWeights } = stated
    const done = matrix(length, actionWeights.length * actionDim)
    done.data.forEach((_, i) => {
      const action = Math.floor((i % done.cols) / actionDim)
      const mask = actions[Math.floor(i / done.cols)] ?? 0
      const value = at(weight('action_table'), i % done.cols)
      done.data[i] = (mask >> action) & 1 ? value : 0
    })
    const x = tokensOf(rows, done)
    for (let i = 0; i < length; i++) {
      const kind = rows[i * slot.all + slot.kind] ?? 0
      if (kind === 0) continue
      const size = stated.tableDim * d
      const own = linear(
        gather(rows.subarray(i * slot.all, (i + 1) * slot.all), 0, 'embedding', stated.tableDim),
        weight('context.weight').subarray(kind * size, (kind + 1) * size),
        weight('context.bias').subarray(kind * d, (kind + 1) * d),
      )
      x.data.set(own.data, i * d)
    }
    return place(x, rows)
  }

  return {
    embed(history, candidates) {
      const m = candidates.length / slot.all
      const target = weight('target_action')
      const actions = matrix(m, target.length)
      for (let c = 0; c < m; c++) actions.data.set(target, c * target.length)
      const own = place(tokensOf(candidates, actions), candidates)
      const before = historyRows(history)
      return {
        rows: before.rows + m,
        cols: d,
        data: Float64Array.from([...before.data, ...own.data]),
      }
    },
    times: () => ({ own: [], compared: [] }),
    bucket: () => 0,
    head(rows, candidates, queryTime) {
      const seconds = Math.fround(queryTime)
      const features4 = PERIODS.flatMap(([unit, count]) => {
        const angle = ((Math.floor(seconds / unit) % count) / count) * 2 * 3.14
        return [Math.cos(angle), Math.sin(angle)]
      })
      const time = matrix(rows.rows, 4)
      time.data.forEach((_, i) => {
        time.data[i] = features4[i % 4] ?? 0
      })
      const ofTime = linear(time, weight('post.time.weight'), weight('post.bias'))
      const ofRows = linear(rows, weight('post.rows.weight'))
      const combined = { ...ofRows, data: ofRows.data.map((x, i) => x + at(ofTime.data, i)) }
      const user = layerNorm(combined, eps.user, ...affine('post.norm'))
      const tower = (stated.itemTower ?? names).map((name) => names.indexOf(name))
      const item = mlp('item', features(candidates, tower))
      return hiddenOf('head', { ...user, data: user.data.map((x, i) => x * at(item.data, i)) }).data
    },
  }
}
