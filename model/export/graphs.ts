import type { FunctionProto } from 'onnx-buf'
import { blockOf, type HstuConfig } from '../config.js'
import type { GraphName } from '../manifest.js'
import { embeddingLayout } from '../schemes.js'
import { candidateBias, type Request, realTokens } from './bias.js'
import {
  attentionAttributes,
  FUNCTION,
  type FunctionShape,
  functionName,
  hstuAttention,
  hstuCausalAttention,
  hstuPackedAttention,
  splitUvqk,
} from './functions.js'
import { hstuGate } from './gate.js'
import {
  enterLayer,
  enterLayers,
  finishBoth,
  finishLayer,
  project,
  projectBoth,
  projectKv,
  projectLast,
  type Tokens,
} from './layer.js'
import { type Dim, type GraphBuilder, type OnnxGraph, onnxGraph } from './onnx.js'
import type { GraphParts } from './variant.js'
import type { WeightFile, WeightType } from './weight-file.js'

export type GraphOptions = {
  readonly config: HstuConfig
  /** The variant's own ends of the graphs. */
  readonly parts: GraphParts
  readonly weights: WeightFile
  readonly type: WeightType
}

/** The three graphs of a bundle; weight names are those that the variant's exporter gives. */
export function buildGraphs(options: GraphOptions): Record<GraphName, OnnxGraph> {
  return { prefill: buildPrefill(options), score: buildScore(options), rank: buildRank(options) }
}

export function shapeOf({ config, parts, type }: GraphOptions, batched: boolean): FunctionShape {
  return { config, block: blockOf(config), type, batched, isNext: parts.next !== undefined }
}

/**
 * History tokens after `p` past ones -> their K and V per layer.
 * rows (n, slots) int32, actions (n) int32, times (p+n) int64, past_k.i (p, H·dqk), past_v.i
 * (p, H·dv) -> k.i (n, H·dqk), v.i (n, H·dv). The last layer ends at its K and V: nothing reads more.
 */
function buildPrefill(options: GraphOptions): OnnxGraph {
  const { config, parts, weights, type } = options
  const shape = shapeOf(options, false)
  const { slots } = embeddingLayout(config)
  const functions = config.layers > 1 ? [hstuCausalAttention(shape), hstuGate(shape)] : []
  return onnxGraph('prefill', weights, functions, (g) => {
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
    const moments = parts.next?.ofHistory(g, newTimes, rows) ?? newTimes
    let x: Tokens = parts.history(g, rows, actions, shape)
    const outputKv = (layer: number, { k, v }: { readonly k: string; readonly v: string }) => {
      g.output(`k.${layer}`, k, type, ['n', config.heads * config.dqk])
      g.output(`v.${layer}`, v, type, ['n', config.heads * config.dv])
    }
    past.slice(0, -1).forEach(({ k, v }, i) => {
      const entered = enterLayer(g, x, i, shape)
      const uvqk = project(g, entered.norm, i, shape)
      outputKv(i, splitUvqk(g, uvqk, config))
      const attended = g.op(
        functionName('CausalAttention', shape),
        [uvqk, k, v, times, moments, ...(shape.block.rab ? biasTables(g, i) : [])],
        { ...FUNCTION, attributes: attentionAttributes(shape) },
      )
      x = finishLayer(g, entered.x, uvqk, attended, i, shape)
    })
    const { norm } = enterLayer(g, x, config.layers - 1, shape)
    outputKv(config.layers - 1, projectKv(g, norm, config.layers - 1, shape))
  })
}

/**
 * A micro-batch of candidates against cached K and V.
 * rows (m, slots) int32, times (n) int64, query_time (1) int64, k.i (n, H·dqk), v.i (n, H·dv)
 * -> logits (m, tasks) float32.
 */
function buildScore(options: GraphOptions): OnnxGraph {
  const { config, parts, weights } = options
  return onnxGraph('score', weights, scoreFunctions(options), (g) => {
    const { x, rows, queryTimes } = queryRows(g, options, 'm')
    const logits = parts.head(g, x, { rows, queryTimes }, shapeOf(options, false))
    g.output('logits', logits, 'float32', ['m', config.tasks.length])
  })
}

/** Functions of `queryRows` and a head behind them. */
export function scoreFunctions(options: GraphOptions): FunctionProto[] {
  const shape = shapeOf(options, false)
  return [hstuAttention(shape), hstuGate(shape)]
}

/** The last layer's rows of `m` candidates, or of what stands for them all; and the graph's inputs for it. */
export function queryRows(g: GraphBuilder, options: GraphOptions, m: Dim) {
  const { config, parts, type } = options
  const shape = shapeOf(options, false)
  const rows = g.input('rows', 'int32', [m, embeddingLayout(config).slots])
  const times = g.input('times', 'int64', ['n'])
  const queryTimes = g.input('query_time', 'int64', [1])
  const selfSeconds = parts.next?.ofQueries(g, rows, shape)
  const attend = candidateAttention(g, { times, queryTimes, lengths: '', selfSeconds }, shape)
  let x: Tokens = parts.queries(g, rows, shape)
  for (let i = 0; i < config.layers; i++) {
    const k = g.input(`k.${i}`, type, ['n', config.heads * config.dqk])
    const v = g.input(`v.${i}`, type, ['n', config.heads * config.dv])
    const entered = enterLayer(g, x, i, shape)
    const uvqk = project(g, entered.norm, i, shape)
    const attended = attend(i, uvqk, { k, v })
    x = finishLayer(g, entered.x, uvqk, attended, i, shape)
  }
  return { x, rows, queryTimes }
}

/**
 * Users of different lengths, history and candidates in one pass; no K/V leaves it.
 * rows (users, n, slots), actions (users, n), times (users, n), lengths (users) int64,
 * candidate_rows (users, m, slots), query_times (users) -> logits (users, m, tasks) float32.
 * Padding stands behind the real tokens: causality hides it from them, and its V is zeroed, so a
 * candidate adds exact zeros for it.
 */
function buildRank(options: GraphOptions): OnnxGraph {
  const { config, parts, weights, type } = options
  const shape = shapeOf(options, true)
  const { slots } = embeddingLayout(config)
  const last = config.layers - 1
  const isPaired = type === 'float16' && !shape.isNext && last > 0
  const functions = [
    ...[hstuAttention(shape), hstuGate(shape)],
    ...(last > 0 ? [hstuCausalAttention(shape)] : []),
    ...(isPaired ? [hstuPackedAttention(shape)] : []),
  ]
  return onnxGraph('rank', weights, functions, (g) => {
    const rows = g.input('rows', 'int32', ['users', 'n', slots])
    const actions = g.input('actions', 'int32', ['users', 'n'])
    const times = g.input('times', 'int64', ['users', 'n'])
    const lengths = g.input('lengths', 'int64', ['users'])
    const candidates = g.input('candidate_rows', 'int32', ['users', 'm', slots])
    const queryTimes = g.input('query_times', 'int64', ['users'])
    const moments = parts.next?.ofHistory(g, times, rows) ?? times
    const selfSeconds = parts.next?.ofQueries(g, candidates, shape)
    const attend = candidateAttention(g, { times, queryTimes, lengths, selfSeconds }, shape)
    const attendHistory = (layer: number, uvqk: string) =>
      g.op(
        functionName('CausalAttention', shape),
        [uvqk, times, moments, ...(shape.block.rab ? biasTables(g, layer) : [])],
        { ...FUNCTION, attributes: attentionAttributes(shape) },
      )
    const embedded = isPaired ? parts.request?.(g, { rows, actions, candidates }, shape) : undefined
    let x: Tokens = embedded?.[0] ?? parts.history(g, rows, actions, shape)
    let y: Tokens = embedded?.[1] ?? parts.queries(g, candidates, shape)
    const enterBoth = (layer: number) =>
      isPaired
        ? enterLayers(g, [x, y], layer, shape)
        : ([enterLayer(g, x, layer, shape), enterLayer(g, y, layer, shape)] as const)
    for (let i = 0; i < last; i++) {
      const [ofX, ofY] = enterBoth(i)
      if (isPaired) {
        const [history, uvqk] = projectBoth(g, [ofX.norm, ofY.norm], i, shape)
        const attended = [attendHistory(i, history), attend(i, uvqk, { uvqk: history })] as const
        ;[x, y] = finishBoth(g, [ofX.x, ofY.x], [history, uvqk], attended, i, shape)
      } else {
        const history = project(g, ofX.norm, i, shape)
        const uvqk = project(g, ofY.norm, i, shape)
        y = finishLayer(g, ofY.x, uvqk, attend(i, uvqk, splitUvqk(g, history, config)), i, shape)
        x = finishLayer(g, ofX.x, history, attendHistory(i, history), i, shape)
      }
    }
    const [ofX, ofY] = enterBoth(last)
    const { k, v, uvqk } = isPaired
      ? projectLast(g, [ofX.norm, ofY.norm], last, shape)
      : {
          uvqk: project(g, ofY.norm, last, shape),
          ...projectKv(g, ofX.norm, last, shape),
        }
    const attended = attend(last, uvqk, { k, v })
    y = finishLayer(g, ofY.x, uvqk, attended, last, shape)
    const logits = parts.head(g, y, { rows: candidates, queryTimes }, shape)
    g.output('logits', logits, 'float32', ['users', 'm', config.tasks.length])
  })
}

/** K and V of a history by themselves, or in its uvqk. */
type History = { readonly k: string; readonly v: string } | { readonly uvqk: string }

/** Calls the candidates' attention of a layer; `lengths` is read where the graph is batched. */
function candidateAttention(
  g: GraphBuilder,
  request: Request,
  shape: FunctionShape,
): (layer: number, uvqk: string, history: History) => string {
  const { block, type, batched, isNext } = shape
  const { times, queryTimes, lengths } = request
  const options = { ...FUNCTION, attributes: attentionAttributes(shape) }
  return (layer, uvqk, history) => {
    const tables = block.rab ? biasTables(g, layer) : undefined
    if (type === 'float16' && !isNext) {
      const rest = [
        ...(batched ? [lengths] : []),
        ...(batched || tables ? [times] : []),
        ...(tables ? [queryTimes, ...tables] : []),
      ]
      return 'uvqk' in history
        ? g.op('HstuPackedAttention', [uvqk, history.uvqk, ...rest], options)
        : g.op('HstuAttention', [uvqk, history.k, history.v, ...rest], options)
    }
    if ('uvqk' in history) throw new Error('a packed history is for float16')
    const v = batched ? realTokens(g, history.v, request, type) : history.v
    const bias = tables ? [candidateBias(g, request, tables, shape)] : []
    return g.op(functionName('Attention', shape), [uvqk, history.k, v, ...bias], options)
  }
}

function biasTables(g: GraphBuilder, layer: number): [string, string] {
  return [g.weight(`layers.${layer}.pos_w`), g.weight(`layers.${layer}.time_w`)]
}
