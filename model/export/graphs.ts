import { blockOf, type HstuConfig } from '../config.js'
import { embeddingLayout } from '../embedding.js'
import type { GraphName } from '../manifest.js'
import { positionRow, timeBucket } from './bias.js'
import {
  attentionAttributes,
  type FunctionShape,
  gateAttributes,
  hstuAttention,
  hstuCausalAttention,
  hstuGate,
  hstuLinear,
  splitUvqk,
} from './functions.js'
import { type GraphBuilder, type OnnxGraph, onnxGraph } from './onnx.js'
import { castTo, lengthOf, ones } from './ops.js'
import type { WeightFile, WeightType } from './weight-file.js'

const FUNCTION = { domain: 'peregrine' } as const

/** The three graphs of a bundle; weight names are those of export/weights.ts. */
export function buildGraphs(
  config: HstuConfig,
  weights: WeightFile,
  type: WeightType,
): Record<GraphName, OnnxGraph> {
  return {
    prefill: buildPrefill(config, weights, type),
    score: buildScore(config, weights, type),
    rank: buildRank(config, weights, type),
  }
}

/**
 * History tokens after `p` past ones -> their K and V per layer.
 * rows (n, slots) int32, actions (n) int32, times (p+n) int64, past_k.i (p, H·dqk), past_v.i
 * (p, H·dv) -> k.i (n, H·dqk), v.i (n, H·dv). The last layer ends at its K and V: nothing reads more.
 */
function buildPrefill(config: HstuConfig, weights: WeightFile, type: WeightType): OnnxGraph {
  const shape = { config, block: blockOf(config), type, batched: false }
  const functions = config.layers > 1 ? [hstuCausalAttention(shape), hstuGate(shape)] : []
  return onnxGraph('prefill', weights, functions, (g) => {
    const { slots } = embeddingLayout(config)
    const rows = g.input('rows', 'int32', ['n', slots])
    const actions = g.input('actions', 'int32', ['n'])
    const times = g.input('times', 'int64', ['p_plus_n'])
    const past = Array.from({ length: config.layers }, (_, i) => ({
      k: g.input(`past_k.${i}`, type, ['p', config.heads * config.dqk]),
      v: g.input(`past_v.${i}`, type, ['p', config.heads * config.dv]),
    }))
    const newTimes = g.op('Slice', [
      times,
      g.op('Neg', [g.op('Shape', [actions])]),
      g.ints([Number.MAX_SAFE_INTEGER]),
    ])
    let x = g.op('Add', [embedItems(g, rows), embedActions(g, actions, shape)])
    const outputKv = (layer: number, { k, v }: { readonly k: string; readonly v: string }) => {
      g.output(`k.${layer}`, k, type, ['n', config.heads * config.dqk])
      g.output(`v.${layer}`, v, type, ['n', config.heads * config.dv])
    }
    past.slice(0, -1).forEach(({ k, v }, i) => {
      const uvqk = projectUvqk(g, x, i, shape)
      outputKv(i, splitUvqk(g, uvqk, config))
      const attended = g.op(
        'HstuCausalAttention',
        [uvqk, k, v, times, newTimes, ...(shape.block.rab ? biasTables(g, i) : [])],
        { ...FUNCTION, attributes: attentionAttributes(shape) },
      )
      x = finishLayer(g, x, uvqk, attended, i, shape)
    })
    outputKv(config.layers - 1, projectKv(g, x, config.layers - 1, shape))
  })
}

/**
 * A micro-batch of candidates against cached K and V.
 * rows (m, slots) int32, times (n) int64, query_time (1) int64, k.i (n, H·dqk), v.i (n, H·dv)
 * -> logits (m, tasks) float32.
 */
function buildScore(config: HstuConfig, weights: WeightFile, type: WeightType): OnnxGraph {
  const shape = { config, block: blockOf(config), type, batched: false }
  return onnxGraph('score', weights, [hstuAttention(shape), hstuGate(shape)], (g) => {
    const { slots } = embeddingLayout(config)
    const rows = g.input('rows', 'int32', ['m', slots])
    const times = g.input('times', 'int64', ['n'])
    const queryTime = g.input('query_time', 'int64', [1])
    // n, n-1, …, 0
    const distance = () => {
      const end = g.scalar(-1, 'int32')
      return g.op('Range', [lengthOf(g, times, 0), end, end])
    }
    const rab = shape.block.rab ? candidateBias(g, times, queryTime, distance(), shape) : undefined
    let x = embedItems(g, rows)
    for (let i = 0; i < config.layers; i++) {
      const k = g.input(`k.${i}`, type, ['n', config.heads * config.dqk])
      const v = g.input(`v.${i}`, type, ['n', config.heads * config.dv])
      const uvqk = projectUvqk(g, x, i, shape)
      const attended = g.op('HstuAttention', [uvqk, k, v, ...(rab ? [rab(i)] : [])], {
        ...FUNCTION,
        attributes: attentionAttributes(shape),
      })
      x = finishLayer(g, x, uvqk, attended, i, shape)
    }
    g.output('logits', taskHead(g, x, shape), 'float32', ['m', config.tasks.length])
  })
}

/**
 * Users of different lengths, history and candidates in one pass; no K/V leaves it.
 * rows (users, n, slots), actions (users, n), times (users, n), lengths (users) int64,
 * candidate_rows (users, m, slots), query_times (users) -> logits (users, m, tasks) float32.
 * Padding stands behind the real tokens: causality hides it from them, and its V is zeroed, so a
 * candidate adds exact zeros for it.
 */
function buildRank(config: HstuConfig, weights: WeightFile, type: WeightType): OnnxGraph {
  const shape = { config, block: blockOf(config), type, batched: true }
  const functions = [
    hstuAttention(shape),
    hstuGate(shape),
    ...(config.layers > 1 ? [hstuCausalAttention(shape)] : []),
  ]
  return onnxGraph('rank', weights, functions, (g) => {
    const { slots } = embeddingLayout(config)
    const rows = g.input('rows', 'int32', ['users', 'n', slots])
    const actions = g.input('actions', 'int32', ['users', 'n'])
    const times = g.input('times', 'int64', ['users', 'n'])
    const lengths = g.input('lengths', 'int64', ['users'])
    const candidateRows = g.input('candidate_rows', 'int32', ['users', 'm', slots])
    const queryTimes = g.input('query_times', 'int64', ['users'])
    const tokensFirst = (x: string, perm: bigint[]) =>
      g.op('Transpose', [x], { attributes: { perm } })

    const one = g.scalar(1, 'int32')
    const range = g.op('Range', [g.scalar(0, 'int32'), lengthOf(g, times, 1), one])
    const lengthColumn = castTo(g, g.op('Unsqueeze', [lengths, g.ints([1])]), 'int32')
    const remaining = g.op('Sub', [lengthColumn, range]) // (users, n): > 0 for real tokens
    const isReal = castTo(g, g.op('Greater', [remaining, g.scalar(0, 'int32')]), type)
    const valid = g.op('Unsqueeze', [tokensFirst(isReal, [1n, 0n]), g.ints([2])]) // (n, users, 1)
    // (users, n+1); what is below 0, padding and the self term at the end, counts as 0.
    const distance = () => {
      const end = g.op('Add', [lengthOf(g, times, 1), one])
      return g.op('Sub', [lengthColumn, g.op('Range', [g.scalar(0, 'int32'), end, one])])
    }
    const query = g.op('Unsqueeze', [queryTimes, g.ints([1])])
    const rab = shape.block.rab ? candidateBias(g, times, query, distance(), shape) : undefined

    let x = g.op('Add', [
      embedItems(g, tokensFirst(rows, [1n, 0n, 2n])),
      embedActions(g, tokensFirst(actions, [1n, 0n]), shape),
    ])
    let y = embedItems(g, tokensFirst(candidateRows, [1n, 0n, 2n]))
    const attributes = attentionAttributes(shape)
    const scoreLayer = (layer: number, { k, v }: { readonly k: string; readonly v: string }) => {
      const uvqk = projectUvqk(g, y, layer, shape)
      const attended = g.op(
        'HstuAttention',
        [uvqk, k, g.op('Mul', [v, valid]), ...(rab ? [rab(layer)] : [])],
        { ...FUNCTION, attributes },
      )
      y = finishLayer(g, y, uvqk, attended, layer, shape)
    }
    for (let i = 0; i < config.layers - 1; i++) {
      const uvqk = projectUvqk(g, x, i, shape)
      scoreLayer(i, splitUvqk(g, uvqk, config))
      const attended = g.op(
        'HstuCausalAttention',
        [uvqk, times, times, ...(rab ? biasTables(g, i) : [])],
        { ...FUNCTION, attributes },
      )
      x = finishLayer(g, x, uvqk, attended, i, shape)
    }
    scoreLayer(config.layers - 1, projectKv(g, x, config.layers - 1, shape))
    const logits = tokensFirst(taskHead(g, y, shape), [1n, 0n, 2n])
    g.output('logits', logits, 'float32', ['users', 'm', config.tasks.length])
  })
}

/** Sum over a token's slots: (…, slots) rows -> (…, D). Tables are stored times sqrt(D). */
function embedItems(g: GraphBuilder, rows: string): string {
  return g.op('ReduceSum', [g.op('Gather', [g.weight('embedding'), rows]), g.ints([-2])], {
    attributes: { keepdims: 0n },
  })
}

/** (…) action masks -> (…, D): one row of `action` per set bit; its last row is the base. */
function embedActions(g: GraphBuilder, masks: string, { config, type }: FunctionShape): string {
  // int64: ONNX Runtime's CUDA provider divides int64 and int32, but takes Mod of int64 only.
  const column = castTo(g, g.op('Unsqueeze', [masks, g.ints([-1])]), 'int64')
  const powers = g.ints(Array.from({ length: config.actions.length + 1 }, (_, a) => 2 ** a))
  const bits = g.op('Mod', [g.op('Div', [column, powers]), g.scalar(2, 'int64')])
  return g.op('MatMul', [castTo(g, bits, type), g.weight('action')])
}

/** LN(x)·W (+ bias), with SiLU where the variant applies it to all four parts. */
function projectUvqk(g: GraphBuilder, x: string, layer: number, shape: FunctionShape): string {
  return project(g, normIn(g, x, layer, shape), layer, shape)
}

/** The columns of k and of v alone: u and q of the last layer's history are read by nobody. */
function projectKv(g: GraphBuilder, x: string, layer: number, shape: FunctionShape) {
  const { heads, dqk, dv } = shape.config
  const norm = normIn(g, x, layer, shape)
  const part = (start: number, end: number) => project(g, norm, layer, shape, [start, end])
  const width = 2 * heads * (dqk + dv)
  return { k: part(width - heads * dqk, width), v: part(heads * dv, 2 * heads * dv) }
}

function normIn(g: GraphBuilder, x: string, layer: number, { config, block, type }: FunctionShape) {
  const prefix = `layers.${layer}.norm_in`
  const affine = block.normInAffine
    ? [g.weight(`${prefix}.weight`), g.weight(`${prefix}.bias`)]
    : [ones(g, config.dModel, type)]
  return layerNorm(g, [x, ...affine], config)
}

/** norm·W (+ bias), SiLU; `columns` of W that are not all are cut out when a session loads the graph. */
function project(
  g: GraphBuilder,
  norm: string,
  layer: number,
  { block }: FunctionShape,
  columns?: readonly [number, number],
): string {
  const weight = (name: string) => {
    const whole = g.weight(`layers.${layer}.uvqk.${name}`)
    if (columns === undefined) return whole
    const [start, end] = columns
    return g.op('Slice', [whole, g.ints([start]), g.ints([end]), g.ints([-1])])
  }
  const body = hstuLinear({ bias: block.uvqkBias, silu: block.silu === 'uvqk' })
  return g.call(body, [norm, weight('weight'), ...(block.uvqkBias ? [weight('bias')] : [])])
}

function finishLayer(
  g: GraphBuilder,
  x: string,
  uvqk: string,
  attended: string,
  layer: number,
  shape: FunctionShape,
): string {
  const prefix = `layers.${layer}`
  const affine = shape.block.normAttnAffine
    ? [g.weight(`${prefix}.norm_attn.weight`), g.weight(`${prefix}.norm_attn.bias`)]
    : []
  const gated = g.op('HstuGate', [uvqk, attended, ...affine], {
    ...FUNCTION,
    attributes: gateAttributes(shape),
  })
  const { outBias } = shape.block
  const bias = outBias ? [g.weight(`${prefix}.out.bias`)] : []
  const weight = g.weight(`${prefix}.out.weight`)
  return g.call(hstuLinear({ bias: outBias, residual: true }), [gated, weight, ...bias, x])
}

/** logits = W2·SiLU(W1·LN(y) + b1) + b2, as float32: (…, D) -> (…, tasks) */
function taskHead(g: GraphBuilder, y: string, { config, type }: FunctionShape): string {
  const norm = layerNorm(g, [y, g.weight('head.norm.weight'), g.weight('head.norm.bias')], config)
  const parameters = (name: string) =>
    [g.weight(`${name}.weight`), g.weight(`${name}.bias`)] as const
  const hidden = g.call(hstuLinear({ bias: true, silu: true }), [norm, ...parameters('head.fc1')])
  // A column per task: nothing to gain from a kernel, and its rounding would be the logits' own.
  const [weight, bias] = parameters('head.fc2')
  const logits = g.op('Add', [g.op('MatMul', [hidden, weight]), bias])
  return castTo(g, logits, 'float32', type)
}

function layerNorm(g: GraphBuilder, inputs: readonly string[], config: HstuConfig): string {
  return g.op('LayerNormalization', inputs, {
    attributes: { axis: -1n, epsilon: config.layerNormEps },
  })
}

/**
 * Relative bias that all candidates of a request share, per layer: ([users,] n+1), the self term last.
 * `distance` ([users,] n+1) int32 token distances; `times` ([users,] n), `query` ([users,] 1).
 */
function candidateBias(
  g: GraphBuilder,
  times: string,
  query: string,
  distance: string,
  { config, batched }: FunctionShape,
): (layer: number) => string {
  // The self term's difference is the 0 behind the others. No Concat: see functions.ts, withBias.
  const seconds = castTo(g, g.op('Sub', [query, times]), 'float64')
  const bucket = timeBucket(g, g.op('Pad', [seconds, g.ints(batched ? [0, 0, 0, 1] : [0, 1])]))
  const position = positionRow(g, distance, config)
  return (layer) => {
    const [positionTable, timeTable] = biasTables(g, layer)
    return g.op('Add', [
      g.op('Gather', [positionTable, position]),
      g.op('Gather', [timeTable, bucket]),
    ])
  }
}

function biasTables(g: GraphBuilder, layer: number): [string, string] {
  return [g.weight(`layers.${layer}.pos_w`), g.weight(`layers.${layer}.time_w`)]
}
