import type { ConfigOf } from '../../config.js'
import { DLRM_EPS } from '../../dlrm-v3/config.js'
import { slotsOf } from '../../dlrm-v3/tokens.js'
import type { FunctionShape } from '../functions.js'
import { sumOf } from '../layer.js'
import type { TensorType } from '../nodes.js'
import type { GraphBuilder } from '../onnx.js'
import { castTo, lengthOf } from '../ops.js'
import { actionBits, tokensFirst } from '../rows.js'
import { gatherTable } from '../table.js'
import type { GraphParts } from '../variant.js'
import { PERIODS } from './tensors.js'

/** Upstream's constant in the angle of a time of day. */
const PI = 3.14

/** Pre- and postprocessor, item tower and head around the layers. */
export function dlrmGraphs(config: ConfigOf<'dlrm-v3'>): GraphParts {
  const { stated } = config
  const eps = stated.layerNormEps ?? DLRM_EPS
  const slot = slotsOf(config)
  const features = config.itemFeatures.map(({ name }) => name)
  const tower = (stated.itemTower ?? features).map((name) => features.indexOf(name))
  const extras = features.map((_, i) => i).slice(1)

  /** Table rows of some features, side by side: (…, features·tableDim) */
  const gather = (g: GraphBuilder, rows: string, which: readonly number[], type: TensorType) => {
    const parts = which.map((feature) => gatherTable(g, column(g, rows, feature), type))
    const [first = ''] = parts
    return parts.length === 1 ? first : g.op('Concat', parts, { attributes: { axis: -1n } })
  }

  /** What every token is, but for its action: (…, D) */
  const content = (g: GraphBuilder, rows: string, type: TensorType) => {
    const own = perceptron(g, 'content', gather(g, rows, [0], type), eps.mlps)
    if (extras.length === 0) return own
    return g.op('Add', [own, perceptron(g, 'extra', gather(g, rows, extras, type), eps.mlps)])
  }

  /** tokens·sqrt(D) + position + time */
  const place = (g: GraphBuilder, tokens: string, rows: string, { type }: FunctionShape) => {
    const scale = castTo(g, g.scalar(Math.sqrt(config.dModel), 'float32'), type, 'float32')
    const row = (table: string, at: number) =>
      g.op('Gather', [g.weight(table), column(g, rows, at)])
    const [position, time] = [row('position', slot.position), row('time', slot.time)]
    return g.op('Sum', [g.op('Mul', [tokens, scale]), position, time])
  }

  return {
    history(g, userRows, userMasks, shape) {
      const rows = tokensFirst(g, userRows, 2, shape)
      const masks = tokensFirst(g, userMasks, 1, shape)
      const action = perceptron(g, 'action', actionVector(g, masks, config, shape), eps.mlps)
      const events = g.op('Add', [content(g, rows, shape.type), action])
      const isPlain = config.context.length === 0
      const tokens = isPlain ? events : withContext(g, events, rows, config, shape.type)
      return { x: place(g, tokens, rows, shape) }
    },
    queries(g, userRows, shape) {
      const rows = tokensFirst(g, userRows, 2, shape)
      // Nobody knows yet what will be done with a candidate: upstream learned a row for that.
      const action = perceptron(g, 'action', g.weight('target_action'), eps.mlps)
      return { x: place(g, g.op('Add', [content(g, rows, shape.type), action]), rows, shape) }
    },
    head(g, y, { rows: userRows, queryTimes }, shape) {
      const { type } = shape
      const rows = tokensFirst(g, userRows, 2, shape)
      const ofTime = g.op('MatMul', [
        timeFeatures(g, queryTimes, type),
        g.weight('post.time.weight'),
      ])
      const ofRows = g.op('MatMul', [sumOf(g, y), g.weight('post.rows.weight')])
      const combined = g.op('Add', [ofRows, g.op('Add', [ofTime, g.weight('post.bias')])])
      const user = norm(g, combined, 'post.norm', eps.user)
      const item = perceptron(g, 'item', gather(g, rows, tower, type), eps.mlps)
      const logits = perceptron(g, 'head', g.op('Mul', [user, item]), eps.mlps, true)
      return tokensFirst(g, castTo(g, logits, 'float32', type), 2, shape)
    },
  }
}

/** One number of each token: (…) */
function column(g: GraphBuilder, rows: string, at: number): string {
  return g.op('Gather', [rows, g.scalar(at, 'int64')], { attributes: { axis: -1n } })
}

function norm(g: GraphBuilder, x: string, name: string, epsilon: number): string {
  return g.op('LayerNormalization', [x, g.weight(`${name}.weight`), g.weight(`${name}.bias`)], {
    attributes: { axis: -1n, epsilon },
  })
}

/** LN(W2·SwishLN(W0·x + b0) + b2), without the last norm where `isHead`; SwishLN(x) = x·sigmoid(LN(x)). */
function perceptron(
  g: GraphBuilder,
  name: string,
  x: string,
  epsilon: number,
  isHead = false,
): string {
  const linear = (input: string, part: string) => {
    const product = g.op('MatMul', [input, g.weight(`${name}.${part}.weight`)])
    return g.op('Add', [product, g.weight(`${name}.${part}.bias`)])
  }
  const hidden = linear(x, '0')
  const gate = g.op('Sigmoid', [norm(g, hidden, `${name}.1`, epsilon)])
  const y = linear(g.op('Mul', [hidden, gate]), '2')
  return isHead ? y : norm(g, y, `${name}.3`, epsilon)
}

/** (…) masks -> (…, actions·width): the table's row of each action that was done, zeros for the others. */
function actionVector(
  g: GraphBuilder,
  masks: string,
  { stated: { actionWeights, actionDim } }: ConfigOf<'dlrm-v3'>,
  { type, batched }: FunctionShape,
): string {
  const actions = actionWeights.length
  const bits = castTo(g, actionBits(g, masks, actions), type)
  const rows = g.op('Mul', [g.op('Unsqueeze', [bits, g.ints([-1])]), g.weight('action_table')])
  return g.op('Reshape', [rows, g.ints([0, ...(batched ? [0] : []), actions * actionDim])])
}

/**
 * Events (n, [users,] D) with the context tokens in their places. These come first in a history, so that
 * at most the first few tokens of a run are some: each is its row times its slot's own matrix.
 */
function withContext(
  g: GraphBuilder,
  events: string,
  rows: string,
  config: ConfigOf<'dlrm-v3'>,
  type: TensorType,
): string {
  const slots = config.context.length
  const { kind } = slotsOf(config)
  const first = g.op('Slice', [rows, g.ints([0]), g.ints([slots]), g.ints([0])])
  const kinds = column(g, first, kind)
  const values = gatherTable(g, column(g, first, 0), type)
  const beforeLast = g.ints([-2])
  const product = g.op('MatMul', [
    g.op('Unsqueeze', [values, beforeLast]),
    g.op('Gather', [g.weight('context.weight'), kinds]),
  ])
  const contexts = g.op('Add', [
    g.op('Squeeze', [product, beforeLast]),
    g.op('Gather', [g.weight('context.bias'), kinds]),
  ])
  const all = g.op('Range', [g.scalar(0, 'int32'), lengthOf(g, rows, 0), g.scalar(1, 'int32')])
  // As many as there are tokens; all behind the first few are events, and their rows not read.
  const spread = g.op('Gather', [contexts, g.op('Min', [all, g.scalar(slots - 1, 'int32')])])
  const isContext = g.op('Greater', [column(g, rows, kind), g.scalar(0, 'int32')])
  return g.op('Where', [g.op('Unsqueeze', [isContext, g.ints([-1])]), spread, events])
}

/** (users) int64 seconds -> (users, 4): cosine and sine of the hour of the day, then of the day of the week. */
function timeFeatures(g: GraphBuilder, queryTimes: string, type: TensorType): string {
  const twice = (values: readonly number[]) => g.ints(values.flatMap((value) => [value, value]))
  // Upstream holds the time in float32, in steps of 128 s; the division is exact.
  const rounded = castTo(g, castTo(g, queryTimes, 'float32'), 'int64')
  const times = g.op('Unsqueeze', [rounded, g.ints([-1])])
  const units = g.op('Div', [times, twice(PERIODS.map(({ seconds }) => seconds))])
  const counts = twice(PERIODS.map(({ count }) => count))
  const part = g.op('Div', [
    castTo(g, g.op('Mod', [units, counts]), 'float32'),
    castTo(g, counts, 'float32'),
  ])
  const angle = g.op('Mul', [part, g.scalar(2 * PI, 'float32')])
  const only = (values: readonly number[]) => castTo(g, g.ints(values), 'float32')
  const both = g.op('Add', [
    g.op('Mul', [g.op('Cos', [angle]), only([1, 0, 1, 0])]),
    g.op('Mul', [g.op('Sin', [angle]), only([0, 1, 0, 1])]),
  ])
  return castTo(g, both, type, 'float32')
}
