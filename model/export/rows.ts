import type { FunctionProto } from 'onnx-buf'
import type { FunctionShape } from './functions.js'
import type { Attribute, NodeBuilder } from './nodes.js'
import { onnxFunction } from './onnx.js'
import { castTo } from './ops.js'

// Functions of domain `peregrine` that only float16 graphs call, which are for GPUs: what a kernel computes
// in one pass where ONNX Runtime's own take several. Stock ONNX Runtime inlines the bodies.

// Those of two results compute history and candidates of a request: one launch of a kernel.

const EPSILON = { ref: 'epsilon', type: 'float' } as const

/** LN(x)·gamma + beta: (…, D) -> (…, D). Called where gamma and beta are. */
export function hstuNorm(): FunctionProto {
  return onnxFunction('HstuNorm', ['x', 'gamma', 'beta'], ['epsilon'], (f) => affineNorm(f, 'x'))
}

/** (history, candidates, gamma, beta) -> LN of each. */
export function hstuNorms(): FunctionProto {
  const inputs = ['history', 'candidates', 'gamma', 'beta']
  return onnxFunction('HstuNorms', inputs, ['epsilon'], (f) =>
    ['history', 'candidates'].map((x) => affineNorm(f, x)),
  )
}

function affineNorm(f: NodeBuilder, x: string): string {
  return f.op('LayerNormalization', [x, 'gamma', 'beta'], {
    attributes: { axis: -1n, epsilon: EPSILON },
  })
}

/**
 * (update, x, gamma, beta, [bias]) -> LN(s)·gamma + beta and s = x + update (+ bias), each (…, D). Called where gamma
 * and beta are.
 */
export function hstuAddNorm(hasBias: boolean): FunctionProto {
  const inputs = ['update', 'x', 'gamma', 'beta', ...(hasBias ? ['bias'] : [])]
  return onnxFunction('HstuAddNorm', inputs, ['epsilon'], (f) => skipNorm(f, inputs, EPSILON))
}

/** Update and rows of the history, of the candidates, gamma, beta, [bias] -> norm and sum of each. */
export function hstuAddNorms(hasBias: boolean): FunctionProto {
  const rest = ['gamma', 'beta', ...(hasBias ? ['bias'] : [])]
  const parts = [
    ['history_update', 'history'],
    ['candidate_update', 'candidates'],
  ]
  return onnxFunction('HstuAddNorms', [...parts.flat(), ...rest], ['epsilon'], (f) =>
    parts.flatMap((part) => skipNorm(f, [...part, ...rest], EPSILON)),
  )
}

/** Norm and sum of (update, x, gamma, [beta, bias]): (…, D) each. */
export function skipNorm(
  f: NodeBuilder,
  inputs: readonly string[],
  epsilon: Attribute,
): [norm: string, sum: string] {
  const [norm = '', , , sum = ''] = f.opN('SkipLayerNormalization', inputs, 4, {
    domain: 'com.microsoft',
    attributes: { epsilon },
    // Mean and variance, which are for training.
    omitted: [1, 2],
  })
  return [norm, sum]
}

// Embeddings: rows of (table, ids ([users,] tokens, slots)) as (tokens, [users,] D), the sum of a token's; and of the
// action's (types, D), one per set bit of masks ([users,] tokens), whose last row is the base. Where the first layer's
// norm is affine its gamma and beta are the last inputs, and every sum is followed by its norm.

/** (table, ids, [gamma, beta]) -> rows, [norm]. */
export function hstuEmbedItems(slots: number, shape: FunctionShape): FunctionProto {
  return embedding('HstuEmbedItems', ['table', 'ids'], shape, (f) => [
    itemNodes(f, 'ids', slots, shape),
  ])
}

/** (table, ids, action, masks, [gamma, beta]) -> rows, [norm]. */
export function hstuEmbedTokens(slots: number, shape: FunctionShape): FunctionProto {
  return embedding('HstuEmbedTokens', ['table', 'ids', 'action', 'masks'], shape, (f) => [
    tokenNodes(f, slots, shape),
  ])
}

/** (table, ids, action, masks, candidates ([users,] m, slots), [gamma, beta]) -> the tokens' and the candidates'. */
export function hstuEmbedRequest(slots: number, shape: FunctionShape): FunctionProto {
  const inputs = ['table', 'ids', 'action', 'masks', 'candidates']
  return embedding('HstuEmbedRequest', inputs, shape, (f) => [
    tokenNodes(f, slots, shape),
    itemNodes(f, 'candidates', slots, shape),
  ])
}

function embedding(
  name: string,
  inputs: readonly string[],
  { block }: FunctionShape,
  build: (f: NodeBuilder) => readonly string[],
): FunctionProto {
  if (!block.normInAffine) return onnxFunction(name, inputs, [], build)
  return onnxFunction(`${name}Norm`, [...inputs, 'gamma', 'beta'], ['epsilon'], (f) =>
    build(f).flatMap((rows) => [rows, affineNorm(f, rows)]),
  )
}

function itemNodes(f: NodeBuilder, ids: string, slots: number, shape: FunctionShape): string {
  return embedNodes(f, tokensFirst(f, ids, 2, shape), slots)
}

function tokenNodes(f: NodeBuilder, slots: number, shape: FunctionShape): string {
  const actions = embedActions(f, tokensFirst(f, 'masks', 1, shape), 'action', shape)
  return embedNodes(f, tokensFirst(f, 'ids', 2, shape), slots, actions)
}

/** (x (tokens, [users,] D), weight (D, tasks), bias (tasks)) -> ([users,] tokens, tasks) float32. */
export function hstuLogits(shape: FunctionShape): FunctionProto {
  return onnxFunction('HstuLogits', ['x', 'weight', 'bias'], [], (f) => {
    const logits = f.op('Add', [f.op('MatMul', ['x', 'weight']), 'bias'])
    return castTo(f, tokensFirst(f, logits, 2, shape), 'float32', shape.type)
  })
}

/** ([users,] tokens, …) of `axes` axes without users -> (tokens, [users,] …), and back. */
export function tokensFirst(
  f: NodeBuilder,
  x: string,
  axes: number,
  { batched }: FunctionShape,
): string {
  if (!batched) return x
  const others = Array.from({ length: axes - 1 }, (_, i) => BigInt(2 + i))
  return f.op('Transpose', [x], { attributes: { perm: [1n, 0n, ...others] } })
}

/**
 * Slot by slot, and `more`: on a GPU one ReduceSum over all slots takes as long as ten small kernels.
 */
function embedNodes(f: NodeBuilder, ids: string, slots: number, ...more: string[]): string {
  return embedItems(f, (each) => f.op('Gather', ['table', each]), ids, slots, ...more)
}

/**
 * Sum over a token's slots, and `more`: (…, slots) rows -> (…, D); `gather` takes ids (…) to a table's rows (…, D).
 * Tables are stored times sqrt(D).
 */
export function embedItems(
  f: NodeBuilder,
  gather: (ids: string) => string,
  rows: string,
  slots: number,
  ...more: string[]
): string {
  const attributes = { axis: -1n }
  const parts = Array.from({ length: slots }, (_, slot) =>
    gather(f.op('Gather', [rows, f.scalar(slot, 'int64')], { attributes })),
  )
  return f.op('Sum', [...parts, ...more])
}

/** (…) action masks -> (…, D): one row of `action` per set bit; its last row is the base. */
export function embedActions(
  f: NodeBuilder,
  masks: string,
  action: string,
  { config, type }: FunctionShape,
): string {
  const bits = actionBits(f, masks, config.actions.length + 1)
  return f.op('MatMul', [castTo(f, bits, type), action])
}

/** (…) masks -> (…, count) int64, 0 or 1. */
export function actionBits(f: NodeBuilder, masks: string, count: number): string {
  // int64: ONNX Runtime's CUDA provider divides int64 and int32, but takes Mod of int64 only.
  const column = castTo(f, f.op('Unsqueeze', [masks, f.ints([-1])]), 'int64')
  const powers = f.ints(Array.from({ length: count }, (_, a) => 2 ** a))
  return f.op('Mod', [f.op('Div', [column, powers]), f.scalar(2, 'int64')])
}
