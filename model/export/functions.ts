import type { FunctionProto } from 'onnx-buf'
import { divisorOf, type HstuConfig } from '../config.js'
import type { Block } from '../config-schema.js'
import { candidateBias, causalBias, realTokens, tokenIndices } from './bias.js'
import type { NodeBuilder, TensorType } from './nodes.js'
import { onnxFunction } from './onnx.js'
import { castTo, sigmoidGate, silu } from './ops.js'
import { biasColumns, pad, withBias } from './pad.js'

/** What a call of one of the functions below carries. */
export const FUNCTION = { domain: 'peregrine' } as const

/**
 * The model-local functions of domain `peregrine`: attention here, gate and linear layers beside it. Stock ONNX Runtime
 * inlines these bodies; a registered kernel library with ops of the same names replaces them, so the
 * bodies are also the kernels' oracle. A body reads every input it declares: a function is emitted for exactly the
 * inputs its graph has.
 *
 * Layout: token-major. `uvqk` is (tokens, [users,] H·dv + H·dv + H·dqk + H·dqk), split u, v, q, k;
 * K is (n, [users,] H·dqk), V (n, [users,] H·dv). `users` is there only in the batched graph.
 */
export type FunctionShape = {
  readonly config: HstuConfig
  readonly block: Block
  readonly type: TensorType
  readonly batched: boolean
  /**
   * A row compares times with the moment of the event after it (variant `research`): differences count by
   * their size, and a candidate's own is not 0. Such functions have names of their own: kernels do not
   * know them.
   */
  readonly isNext?: boolean
}

export function functionName(
  name: 'Attention' | 'CausalAttention',
  { isNext = false }: FunctionShape,
): string {
  return `Hstu${isNext ? 'Next' : ''}${name}`
}

/** Attributes that each call of an attention function carries, for kernels that do not read the body. */
export function attentionAttributes(shape: FunctionShape) {
  const { config, block } = shape
  return { ...headAttributes(shape), alpha: block.alpha, scale: 1 / divisorOf(config) }
}

/** How uvqk is split. */
export function headAttributes({ config }: FunctionShape) {
  return {
    num_heads: BigInt(config.heads),
    head_dim_qk: BigInt(config.dqk),
    head_dim_v: BigInt(config.dv),
  }
}

const ATTENTION_ATTRIBUTES = ['num_heads', 'head_dim_qk', 'head_dim_v', 'alpha', 'scale']
const ALPHA = { ref: 'alpha', type: 'float' } as const
const SCALE = { ref: 'scale', type: 'float' } as const

/**
 * Candidates against a history: each sees all of K and V and itself, no other candidate.
 * float32: (uvqk, k, v, [bias]) -> (m, [users,] H·dv). `bias` is ([users,] n+1): the relative bias of every
 * history token, then of the self term.
 * float16, which is for GPUs and their kernels: (uvqk, k, v, [lengths, times], [query_times, pos_w, time_w]),
 * so that no bias lies in memory and no V is copied to hide padding. `lengths` (users) int64 where there are
 * users, `times` ([users,] n) int64 seconds where there are users or a bias, `query_times` (users).
 * @see Zhai et al., "Actions Speak Louder than Words", section 3.4 (M-FALCON)
 */
export function hstuAttention(shape: FunctionShape): FunctionProto {
  return onnxFunction(
    functionName('Attention', shape),
    ['uvqk', 'k', 'v', ...candidateInputs(shape)],
    ATTENTION_ATTRIBUTES,
    (f) => attendCandidates(f, { k: 'k', v: 'v' }, shape),
  )
}

/** The same over a history that is still in its own uvqk: (uvqk, history, …), in float16 alone. */
export function hstuPackedAttention(shape: FunctionShape): FunctionProto {
  return onnxFunction(
    'HstuPackedAttention',
    ['uvqk', 'history', ...candidateInputs(shape)],
    ATTENTION_ATTRIBUTES,
    (f) => attendCandidates(f, splitUvqk(f, 'history', shape.config), shape),
  )
}

/** What an attention of candidates takes behind K and V. */
function candidateInputs(shape: FunctionShape): string[] {
  const { block, batched } = shape
  if (!hasOwnBias(shape)) return block.rab ? ['bias'] : []
  return [
    ...(batched ? ['lengths'] : []),
    ...(batched || block.rab ? ['times'] : []),
    ...(block.rab ? ['query_times', 'pos_w', 'time_w'] : []),
  ]
}

/** Bias and mask are made inside, of times and lengths. */
function hasOwnBias({ type, isNext = false }: FunctionShape): boolean {
  return type === 'float16' && !isNext
}

const NAMES = { times: 'times', queryTimes: 'query_times', lengths: 'lengths' }

function attendCandidates(
  f: NodeBuilder,
  history: { readonly k: string; readonly v: string },
  shape: FunctionShape,
): string {
  const { block, type, batched } = shape
  const [ownV, ownQ, ownK] = splitHeads(f, 'uvqk', shape)
  let q = ownQ
  let k = heads(f, history.k, shape.config.dqk, shape)
  const isHere = hasOwnBias(shape)
  const v = batched && isHere ? realTokens(f, history.v, NAMES, type) : history.v
  let self = f.op('ReduceSum', [f.op('Mul', [ownQ, ownK]), f.ints([-1])])
  if (block.rab) {
    const lastAxis = f.ints([-1])
    const alpha = attributeScalar(f, ALPHA, type)
    const whole = isHere ? candidateBias(f, NAMES, ['pos_w', 'time_w'], shape) : 'bias'
    // q·k + bias as one product, [q, 1]·[k, bias/alpha]: adding the row afterwards costs a pass over
    // (H, m, n), which was 7 to 10 % of a micro-batch of 256.
    const bias = block.alpha === 1 ? whole : f.op('Div', [whole, alpha])
    const row = f.op('Slice', [bias, f.ints([0]), f.ints([-1]), lastAxis])
    const column = batched ? f.op('Transpose', [row], { attributes: { perm: [1n, 0n] } }) : row
    const own = f.op('Slice', [bias, f.ints([-1]), f.ints([Number.MAX_SAFE_INTEGER]), lastAxis])
    q = pad(f, q, { before: 0, after: biasColumns(type), value: 1 }, shape)
    k = withBias(f, k, f.op('Unsqueeze', [column, f.ints([-1, -2])]), shape)
    self = f.op('Add', [self, batched ? f.op('Unsqueeze', [own, f.ints([1])]) : own])
  }
  const scores = scoresOf(f, q, k)
  const attended = weightedSum(f, silu(f, scores), heads(f, v, shape.config.dv, shape), batched)
  // scale·SiLU(alpha·s) = scale·alpha·(s·sigmoid(alpha·s)): the constant product is folded at load.
  const constant = f.op('Mul', [attributeScalar(f, ALPHA, type), attributeScalar(f, SCALE, type)])
  const weight = f.op('Mul', [sigmoidGate(f, self, ALPHA), constant])
  return joinHeads(f, f.op('Add', [attended, f.op('Mul', [weight, ownV])]), shape)
}

/**
 * History over itself: row i of the new tokens sees every earlier token and itself.
 * (uvqk, [past_k, past_v], times, new_times, [pos_w, time_w]) -> (c, [users,] H·dv). `times` is
 * ([users,] p+c) int64 seconds of all tokens, past ones first, `new_times` ([users,] c) its end;
 * `pos_w` (positions) and `time_w` (128) are the two tables of the relative bias. The batched form
 * has no past.
 */
export function hstuCausalAttention(shape: FunctionShape): FunctionProto {
  const { block, config, type, batched } = shape
  const inputs = [
    'uvqk',
    ...(batched ? [] : ['past_k', 'past_v']),
    ...['times', 'new_times'],
    ...(block.rab ? ['pos_w', 'time_w'] : []),
  ]
  return onnxFunction(functionName('CausalAttention', shape), inputs, ATTENTION_ATTRIBUTES, (f) => {
    const [newV, q, newK] = splitHeads(f, 'uvqk', shape)
    const withPast = (past: string, own: string, width: number) =>
      batched
        ? own
        : f.op('Concat', [heads(f, past, width, shape), own], { attributes: { axis: 0n } })
    const k = withPast('past_k', newK, config.dqk)
    const v = withPast('past_v', newV, config.dv)
    const { rows, columns } = tokenIndices(f)
    let scores = scoresOf(f, q, k)
    if (block.rab) {
      const distance = f.op('Sub', [rows, columns])
      scores = perHead(f, 'Add', scores, causalBias(f, distance, shape), shape)
    }
    // A product, not Trilu: on CPUs that one is serial, 31 ms a layer at 2,048 tokens where this is 15.
    const mask = castTo(f, f.op('GreaterOrEqual', [rows, columns]), type)
    const visible = f.op('Reshape', [mask, f.ints([-1])])
    const weights = perHead(f, 'Mul', silu(f, scores), visible, shape)
    return joinHeads(f, weightedSum(f, weights, v, batched), shape)
  })
}

/**
 * ([users,] H, c, p+c) with a plane ([users, 1,] c·(p+c)) that all heads share. A plane is one row:
 * ONNX Runtime's CUDA kernels have a shorter way to broadcast one axis than two.
 */
function perHead(
  f: NodeBuilder,
  type: 'Add' | 'Mul',
  x: string,
  plane: string,
  { batched }: FunctionShape,
): string {
  const row = f.op('Reshape', [x, f.ints([0, ...(batched ? [0] : []), -1])])
  const y = f.op(type, [row, plane])
  return f.op('Reshape', [y, f.op('Shape', [x])])
}

/** (tokens, [users,] heads·width) -> (tokens, [users,] heads, width) */
function heads(
  f: NodeBuilder,
  x: string,
  width: number,
  { config, batched }: FunctionShape,
): string {
  return f.op('Reshape', [x, f.ints([0, ...(batched ? [0] : []), config.heads, width])])
}

/** uvqk -> u, v, q, k, each (tokens, [users,] heads·width) */
export function splitUvqk(f: NodeBuilder, uvqk: string, { heads: h, dqk, dv }: HstuConfig) {
  const sizes = f.ints([h * dv, h * dv, h * dqk, h * dqk])
  const [u = '', v = '', q = '', k = ''] = f.opN('Split', [uvqk, sizes], 4, {
    attributes: { axis: -1n },
  })
  return { u, v, q, k }
}

/** uvqk -> v, q, k, each (tokens, [users,] heads, width) */
function splitHeads(f: NodeBuilder, uvqk: string, shape: FunctionShape): [string, string, string] {
  const { dqk, dv } = shape.config
  const { v, q, k } = splitUvqk(f, uvqk, shape.config)
  return [heads(f, v, dv, shape), heads(f, q, dqk, shape), heads(f, k, dqk, shape)]
}

/**
 * alpha·q·kᵀ: (m, [users,] H, d) and (n, [users,] H, d) -> ([users,] H, m, n). `transBatch` makes the
 * matrix product read token-major operands in place, by row strides: no transposed copy of K or V.
 */
function scoresOf(f: NodeBuilder, q: string, k: string): string {
  return f.op('FusedMatMul', [q, k], {
    domain: 'com.microsoft',
    attributes: { alpha: ALPHA, transB: 1n, transBatchA: 1n, transBatchB: 1n },
  })
}

/** scale·weights·v, back to token-major: (m, [users,] H, dv) */
function weightedSum(f: NodeBuilder, weights: string, v: string, batched: boolean): string {
  const sum = f.op('FusedMatMul', [weights, v], {
    domain: 'com.microsoft',
    attributes: { alpha: SCALE, transBatchB: 1n },
  })
  return f.op('Transpose', [sum], {
    attributes: { perm: batched ? [2n, 0n, 1n, 3n] : [1n, 0n, 2n] },
  })
}

function joinHeads(f: NodeBuilder, x: string, { config, batched }: FunctionShape): string {
  return f.op('Reshape', [x, f.ints([0, ...(batched ? [0] : []), config.heads * config.dv])])
}

function attributeScalar(
  f: NodeBuilder,
  ref: typeof ALPHA | typeof SCALE,
  type: TensorType,
): string {
  return castTo(f, f.op('Constant', [], { attributes: { value_float: ref } }), type, 'float32')
}
