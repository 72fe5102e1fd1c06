import { FUNCTION, type FunctionShape, gateAttributes } from './functions.js'
import { linear } from './linear.js'
import type { GraphBuilder } from './onnx.js'
import { castTo, ones } from './ops.js'

/** (…, D): `x`, or `x + update (+ bias)` behind a layer, which the next norm adds up. */
export type Tokens = { readonly x: string; readonly update?: string; readonly bias?: string }

/** The columns of k and of v alone: u and q of the last layer's history are read by nobody. */
export function projectKv(g: GraphBuilder, x: Tokens, layer: number, shape: FunctionShape) {
  const { heads, dqk, dv } = shape.config
  const { norm } = enterLayer(g, x, layer, shape)
  const part = (start: number, end: number) => project(g, norm, layer, shape, [start, end])
  const width = 2 * heads * (dqk + dv)
  return { k: part(width - heads * dqk, width), v: part(heads * dv, 2 * heads * dv) }
}

/** The layer's first norm, and the tokens themselves, which `finishLayer` adds its result to. */
export function enterLayer(g: GraphBuilder, x: Tokens, layer: number, shape: FunctionShape) {
  const { config, block, type } = shape
  const prefix = `layers.${layer}.norm_in`
  const affine = block.normInAffine
    ? [g.weight(`${prefix}.weight`), g.weight(`${prefix}.bias`)]
    : [ones(g, config.dModel, type)]
  return normOf(g, x, affine, shape)
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
  const bias = block.uvqkBias ? { bias: weight('bias') } : {}
  return linear(g, norm, { w: weight('weight'), ...bias, silu: block.silu === 'uvqk' }, shape)
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
  const affine = shape.block.normAttnAffine
    ? [g.weight(`${prefix}.norm_attn.weight`), g.weight(`${prefix}.norm_attn.bias`)]
    : []
  const gated = g.op('HstuGate', [uvqk, attended, ...affine], {
    ...FUNCTION,
    attributes: gateAttributes(shape),
  })
  const update = g.op('MatMul', [gated, g.weight(`${prefix}.out.weight`)])
  return shape.block.outBias ? { x, update, bias: g.weight(`${prefix}.out.bias`) } : { x, update }
}

/** logits = W2·SiLU(W1·LN(y) + b1) + b2, as float32: (…, D) -> (…, tasks) */
export function taskHead(g: GraphBuilder, y: Tokens, shape: FunctionShape): string {
  const affine = [g.weight('head.norm.weight'), g.weight('head.norm.bias')]
  const { norm } = normOf(g, y, affine, shape)
  const fc1 = { w: g.weight('head.fc1.weight'), bias: g.weight('head.fc1.bias'), silu: true }
  const product = g.op('MatMul', [linear(g, norm, fc1, shape), g.weight('head.fc2.weight')])
  const logits = g.op('Add', [product, g.weight('head.fc2.bias')])
  return castTo(g, logits, 'float32', shape.type)
}

/**
 * LN of the tokens, and the tokens added up; `affine`: gamma, and beta where there is one. In float16,
 * which is for GPUs, by one node; on CPUs that took 4 % longer than a product that adds and a norm.
 */
function normOf(
  g: GraphBuilder,
  { x, update, bias }: Tokens,
  affine: readonly string[],
  { config, type }: FunctionShape,
): { readonly norm: string; readonly x: string } {
  const epsilon = config.layerNormEps
  const plain = (sum: string) => {
    const inputs = [sum, ...affine]
    const norm =
      type === 'float16' && affine.length === 2
        ? g.op('HstuNorm', inputs, { ...FUNCTION, attributes: { epsilon } })
        : g.op('LayerNormalization', inputs, { attributes: { axis: -1n, epsilon } })
    return { norm, x: sum }
  }
  if (update === undefined) return plain(x)
  if (type !== 'float16') {
    const y = bias === undefined ? update : g.op('Add', [update, bias])
    return plain(g.op('Add', [y, x]))
  }
  const [gamma = '', beta = ''] = affine
  const inputs = [update, x, gamma, beta, ...(bias === undefined ? [] : [bias])]
  const [norm = '', , , sum = ''] = g.opN('SkipLayerNormalization', inputs, 4, {
    domain: 'com.microsoft',
    attributes: { epsilon },
    // Mean and variance, which are for training.
    omitted: [1, 2],
  })
  return { norm, x: sum }
}
