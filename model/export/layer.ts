import { FUNCTION, type FunctionShape, headAttributes } from './functions.js'
import { gateAttributes, hstuGates } from './gate.js'
import { hstuLastLinears, hstuLinear, hstuLinears, kvColumns } from './linear.js'
import type { GraphBuilder } from './onnx.js'
import { ones } from './ops.js'
import {
  hstuAddNorm,
  hstuAddNorms,
  hstuLogits,
  hstuNorm,
  hstuNorms,
  skipNorm,
  tokensFirst,
} from './rows.js'

/**
 * (…, D): `x`, or in float16 `x + update (+ bias)` behind a layer: that is for GPUs, where the next norm
 * adds it up by one node. On CPUs this took 4 % longer than a product that adds and a norm.
 */
export type Tokens = {
  readonly x: string
  /** What the first layer's norm makes of `x`, where that came with it. */
  readonly norm?: string
  readonly update?: string
  readonly bias?: readonly string[]
}

/** What a request's rows are made of, history and candidates. */
export type Both<T> = readonly [history: T, candidates: T]

/** The columns of k and of v alone: u and q of the last layer's history are read by nobody. */
export function projectKv(g: GraphBuilder, norm: string, layer: number, shape: FunctionShape) {
  const { k, v } = kvColumns(shape.config)
  return { k: project(g, norm, layer, shape, k), v: project(g, norm, layer, shape, v) }
}

/** The layer's first norm, and the tokens themselves, which `finishLayer` adds its result to. */
export function enterLayer(g: GraphBuilder, x: Tokens, layer: number, shape: FunctionShape) {
  return normOf(g, x, inAffine(g, layer, shape), shape)
}

/** The same of history and candidates, by functions that float16 graphs have for both. */
export function enterLayers(
  g: GraphBuilder,
  [x, y]: Both<Tokens>,
  layer: number,
  shape: FunctionShape,
): Both<{ readonly norm: string; readonly x: string }> {
  const affine = inAffine(g, layer, shape)
  if (affine.length < 2) return [normOf(g, x, affine, shape), normOf(g, y, affine, shape)]
  const epsilon = shape.config.layerNormEps
  if (x.norm !== undefined && y.norm !== undefined) {
    return [
      { norm: x.norm, x: x.x },
      { norm: y.norm, x: y.x },
    ]
  }
  if (x.update === undefined || y.update === undefined) {
    const [a = '', b = ''] = g.callN(hstuNorms(), [x.x, y.x, ...affine], { epsilon })
    return [
      { norm: a, x: x.x },
      { norm: b, x: y.x },
    ]
  }
  const { bias = [] } = x
  const inputs = [x.update, x.x, y.update, y.x, ...affine, ...bias]
  const [a = '', sumA = '', b = '', sumB = ''] = g.callN(hstuAddNorms(bias.length > 0), inputs, {
    epsilon,
  })
  return [
    { norm: a, x: sumA },
    { norm: b, x: sumB },
  ]
}

function inAffine(g: GraphBuilder, layer: number, { config, block, type }: FunctionShape) {
  const prefix = `layers.${layer}.norm_in`
  return block.normInAffine
    ? [g.weight(`${prefix}.weight`), g.weight(`${prefix}.bias`)]
    : [ones(g, config.dModel, type)]
}

/** norm·W (+ bias) of history and candidates. */
export function projectBoth(
  g: GraphBuilder,
  norms: Both<string>,
  layer: number,
  shape: FunctionShape,
): Both<string> {
  return pairOf(g.callN(hstuLinears(uvqkForm(shape)), [...norms, ...uvqkWeights(g, layer, shape)]))
}

/** The last layer's: K and V of the history, uvqk of the candidates. */
export function projectLast(
  g: GraphBuilder,
  norms: Both<string>,
  layer: number,
  shape: FunctionShape,
) {
  const body = hstuLastLinears(uvqkForm(shape), shape.config)
  const inputs = [...norms, ...uvqkWeights(g, layer, shape)]
  const [k = '', v = '', uvqk = ''] = g.callN(body, inputs, headAttributes(shape))
  return { k, v, uvqk }
}

function uvqkForm({ block }: FunctionShape) {
  return { bias: block.uvqkBias, silu: block.silu === 'uvqk' }
}

function uvqkWeights(g: GraphBuilder, layer: number, { block }: FunctionShape): string[] {
  const name = `layers.${layer}.uvqk`
  return [g.weight(`${name}.weight`), ...(block.uvqkBias ? [g.weight(`${name}.bias`)] : [])]
}

/** Gate and output layer of history and candidates, in float16. */
export function finishBoth(
  g: GraphBuilder,
  rows: Both<string>,
  uvqk: Both<string>,
  attended: Both<string>,
  layer: number,
  shape: FunctionShape,
): Both<Tokens> {
  const prefix = `layers.${layer}`
  const inputs = [uvqk[0], attended[0], uvqk[1], attended[1], ...attnAffine(g, layer, shape)]
  const gated = g.callN(hstuGates(shape), inputs, gateAttributes(shape))
  const updates = g.callN(hstuLinears({}), [...gated, g.weight(`${prefix}.out.weight`)])
  const bias = shape.block.outBias ? [g.weight(`${prefix}.out.bias`)] : []
  const [x = '', y = ''] = updates
  return [
    { x: rows[0], update: x, bias },
    { x: rows[1], update: y, bias },
  ]
}

function pairOf([a = '', b = '']: readonly string[]): Both<string> {
  return [a, b]
}

function attnAffine(g: GraphBuilder, layer: number, { block }: FunctionShape): string[] {
  const name = `layers.${layer}.norm_attn`
  return block.normAttnAffine ? [g.weight(`${name}.weight`), g.weight(`${name}.bias`)] : []
}

/**
 * norm·W (+ bias), with SiLU where the variant applies it to all four parts; `columns` of W that are not
 * all are cut out when a session loads the graph.
 */
export function project(
  g: GraphBuilder,
  norm: string,
  layer: number,
  shape: FunctionShape,
  columns?: readonly [number, number],
): string {
  const { block } = shape
  const weight = (name: string) => {
    const whole = g.weight(`layers.${layer}.uvqk.${name}`)
    if (columns === undefined) return whole
    const [start, end] = columns
    return g.op('Slice', [whole, g.ints([start]), g.ints([end]), g.ints([-1])])
  }
  const body = hstuLinear(uvqkForm(shape))
  return g.call(body, [norm, weight('weight'), ...(block.uvqkBias ? [weight('bias')] : [])])
}

export function finishLayer(
  g: GraphBuilder,
  x: string,
  uvqk: string,
  attended: string,
  layer: number,
  shape: FunctionShape,
): Tokens {
  const prefix = `layers.${layer}`
  const gated = g.op('HstuGate', [uvqk, attended, ...attnAffine(g, layer, shape)], {
    ...FUNCTION,
    attributes: gateAttributes(shape),
  })
  const { outBias } = shape.block
  const weight = g.weight(`${prefix}.out.weight`)
  const bias = outBias ? [g.weight(`${prefix}.out.bias`)] : []
  if (shape.type === 'float16') return { x, update: g.op('MatMul', [gated, weight]), bias }
  const body = hstuLinear({ bias: outBias, residual: true })
  return { x: g.call(body, [gated, weight, ...bias, x]) }
}

/** logits = W2·SiLU(W1·LN(y) + b1) + b2, as float32: (tokens, [users,] D) -> ([users,] tokens, tasks) */
export function taskHead(g: GraphBuilder, y: Tokens, shape: FunctionShape): string {
  const affine = [g.weight('head.norm.weight'), g.weight('head.norm.bias')]
  const { norm } = normOf(g, y, affine, shape)
  const parameters = (name: string) =>
    [g.weight(`${name}.weight`), g.weight(`${name}.bias`)] as const
  const hidden = g.call(hstuLinear({ bias: true, silu: true }), [norm, ...parameters('head.fc1')])
  const [weight, bias] = parameters('head.fc2')
  if (shape.type === 'float16') return g.call(hstuLogits(shape), [hidden, weight, bias])
  return tokensFirst(g, g.op('Add', [g.op('MatMul', [hidden, weight]), bias]), 2, shape)
}

/** The tokens themselves, added up. */
export function sumOf(g: GraphBuilder, { x, update, bias = [] }: Tokens): string {
  return update === undefined ? x : g.op('Sum', [x, update, ...bias])
}

/** LN of the tokens, and the tokens added up; `affine`: gamma, and beta where there is one. */
function normOf(
  g: GraphBuilder,
  { x, norm: known, update, bias = [] }: Tokens,
  affine: readonly string[],
  { config, type }: FunctionShape,
): { readonly norm: string; readonly x: string } {
  const epsilon = config.layerNormEps
  if (known !== undefined) return { norm: known, x }
  if (update === undefined) {
    const inputs = [x, ...affine]
    if (type === 'float16' && affine.length === 2) {
      const [norm = ''] = g.callN(hstuNorm(), inputs, { epsilon })
      return { norm, x }
    }
    const norm = g.op('LayerNormalization', inputs, { attributes: { axis: -1n, epsilon } })
    return { norm, x }
  }
  const [gamma = '', beta = ''] = affine
  const inputs = [update, x, gamma, beta, ...bias]
  if (affine.length < 2) {
    const [norm, sum] = skipNorm(g, inputs, epsilon)
    return { norm, x: sum }
  }
  const [norm = '', sum = ''] = g.callN(hstuAddNorm(bias.length > 0), inputs, { epsilon })
  return { norm, x: sum }
}
