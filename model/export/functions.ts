import type { FunctionProto } from 'onnx-buf'
import type { Block, HstuConfig } from '../config.js'
import { type NodeBuilder, onnxFunction, type TensorType } from './onnx.js'

/**
 * The three model-local functions of domain `peregrine`. Stock ONNX Runtime inlines these bodies; a
 * registered kernel library with ops of the same names replaces them, so the bodies are also the
 * kernels' oracle. A body reads every input it declares: a function is emitted for exactly the
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
}

/** Attributes that each call of an attention function carries, for kernels that do not read the body. */
export function attentionAttributes({ config, block }: FunctionShape) {
  return {
    num_heads: BigInt(config.heads),
    head_dim_qk: BigInt(config.dqk),
    head_dim_v: BigInt(config.dv),
    alpha: block.alpha,
    scale: 1 / config.maxTokens,
  }
}

const ATTENTION_ATTRIBUTES = ['num_heads', 'head_dim_qk', 'head_dim_v', 'alpha', 'scale']
const ALPHA = { ref: 'alpha', type: 'float' } as const
const SCALE = { ref: 'scale', type: 'float' } as const

/**
 * Candidates against a history: each sees all of K and V and itself, no other candidate.
 * (uvqk, k, v, [bias]) -> (m, [users,] H·dv). `bias` is ([users,] n+1): the relative bias of every
 * history token, then of the self term.
 * @see Zhai et al., "Actions Speak Louder than Words", section 3.4 (M-FALCON)
 */
export function hstuAttention(shape: FunctionShape): FunctionProto {
  const { block, type, batched } = shape
  const inputs = ['uvqk', 'k', 'v', ...(block.rab ? ['bias'] : [])]
  return onnxFunction('HstuAttention', inputs, ATTENTION_ATTRIBUTES, (f) => {
    const [, ownV, ownQ, ownK] = splitHeads(f, 'uvqk', shape)
    let q = ownQ
    let k = heads(f, 'k', shape.config.dqk, shape)
    let self = f.op('ReduceSum', [f.op('Mul', [ownQ, ownK]), f.ints([-1])])
    if (block.alpha !== 1) self = f.op('Mul', [self, attributeScalar(f, ALPHA, type)])
    if (block.rab) {
      const lastAxis = f.ints([-1])
      const row = f.op('Slice', ['bias', f.ints([0]), f.ints([-1]), lastAxis])
      const column = batched ? f.op('Transpose', [row], { attributes: { perm: [1n, 0n] } }) : row
      const own = f.op('Slice', ['bias', f.ints([-1]), f.ints([Number.MAX_SAFE_INTEGER]), lastAxis])
      // q·k + bias as one product, [q, 1/alpha]·[k, bias]: adding the row afterwards costs a pass over
      // (H, m, n), which was 7 to 10 % of a micro-batch of 256.
      q = withColumn(
        f,
        q,
        f.op('Div', [
          castTo(f, f.scalar(1, 'float32'), type, 'float32'),
          attributeScalar(f, ALPHA, type),
        ]),
      )
      k = withColumn(f, k, f.op('Unsqueeze', [column, f.ints([-1, -2])]))
      self = f.op('Add', [self, batched ? f.op('Unsqueeze', [own, f.ints([1])]) : own])
    }
    const scores = scoresOf(f, q, k)
    const attended = weightedSum(f, silu(f, scores), heads(f, 'v', shape.config.dv, shape), batched)
    const weight = f.op('Mul', [silu(f, self), attributeScalar(f, SCALE, type)])
    return joinHeads(f, f.op('Add', [attended, f.op('Mul', [weight, ownV])]), shape)
  })
}

/**
 * History over itself: row i of the new tokens sees every earlier token and itself.
 * (uvqk, [past_k, past_v], [pos_w, time_w, times, new_times]) -> (c, [users,] H·dv). `times` is
 * ([users,] p+c) int64 seconds of all tokens, past ones first, `new_times` ([users,] c) its end;
 * `pos_w` (positions) and `time_w` (128) are the two tables of the relative bias. The batched form
 * has no past.
 */
export function hstuCausalAttention(shape: FunctionShape): FunctionProto {
  const { block, config, type, batched } = shape
  const inputs = [
    'uvqk',
    ...(batched ? [] : ['past_k', 'past_v']),
    ...(block.rab ? ['pos_w', 'time_w', 'times', 'new_times'] : []),
  ]
  return onnxFunction('HstuCausalAttention', inputs, ATTENTION_ATTRIBUTES, (f) => {
    const [, newV, q, newK] = splitHeads(f, 'uvqk', shape)
    const withPast = (past: string, own: string, width: number) =>
      batched
        ? own
        : f.op('Concat', [heads(f, past, width, shape), own], { attributes: { axis: 0n } })
    const k = withPast('past_k', newK, config.dqk)
    const v = withPast('past_v', newV, config.dv)
    // Lengths are read off the times, which all layers share: ONNX Runtime then computes distances,
    // buckets and mask once for all layers.
    const distance = block.rab
      ? tokenDistance(f, lengthOf(f, 'new_times', -1), lengthOf(f, 'times', -1))
      : tokenDistance(f, lengthOf(f, q, 0), lengthOf(f, k, 0))
    let scores = scoresOf(f, q, k)
    if (block.rab) {
      let bias = f.op('Add', [positionBias(f, distance, config.positions), timeBias(f)])
      if (batched) bias = f.op('Unsqueeze', [bias, f.ints([1])])
      scores = f.op('Add', [scores, bias])
    }
    const visible = castTo(f, f.op('GreaterOrEqual', [distance, f.scalar(0, 'int64')]), type)
    const weights = f.op('Mul', [silu(f, scores), visible])
    return joinHeads(f, weightedSum(f, weights, v, batched), shape)
  })
}

/**
 * How attention and gate meet: `gate` is u·LN(a); `concat` is [u, a, u·LN(a)].
 * (uvqk, a, [gamma, beta]) -> (tokens, [users,] H·dv or 3·H·dv). Attribute `act` says whether SiLU
 * is still to be applied to u, `concat` which of the two.
 */
export function hstuGate({ config, block, type }: FunctionShape): FunctionProto {
  const inputs = ['uvqk', 'a', ...(block.normAttnAffine ? ['gamma', 'beta'] : [])]
  return onnxFunction(
    'HstuGate',
    inputs,
    ['act', 'concat', 'epsilon', 'num_heads', 'head_dim_v'],
    (f) => {
      const width = config.heads * config.dv
      let u = f.op('Slice', ['uvqk', f.ints([0]), f.ints([width]), f.ints([-1])])
      if (block.silu === 'u') u = silu(f, u)
      const affine = block.normAttnAffine ? ['gamma', 'beta'] : [ones(f, width, type)]
      const norm = f.op('LayerNormalization', ['a', ...affine], {
        attributes: { axis: -1n, epsilon: { ref: 'epsilon', type: 'float' } },
      })
      const gated = f.op('Mul', [u, norm])
      if (block.combine === 'gate') return gated
      return f.op('Concat', [u, 'a', gated], { attributes: { axis: -1n } })
    },
  )
}

export function gateAttributes({ config, block }: FunctionShape) {
  return {
    act: block.silu === 'u' ? 1n : 0n,
    concat: block.combine === 'concat' ? 1n : 0n,
    epsilon: config.layerNormEps,
    num_heads: BigInt(config.heads),
    head_dim_v: BigInt(config.dv),
  }
}

/** x·sigmoid(x): ONNX Runtime has it as one kernel. */
export function silu(f: NodeBuilder, x: string): string {
  return f.op('QuickGelu', [x], { domain: 'com.microsoft', attributes: { alpha: 1 } })
}

/** A vector of ones, for a layer norm without scale. */
export function ones(f: NodeBuilder, width: number, type: TensorType): string {
  return f.op('Expand', [castTo(f, f.scalar(1, 'float32'), type, 'float32'), f.ints([width])])
}

export function castTo(f: NodeBuilder, x: string, type: TensorType, from?: TensorType): string {
  if (from === type) return x
  const to = { float32: 1n, int32: 6n, int64: 7n, float16: 10n, float64: 11n }[type]
  return f.op('Cast', [x], { attributes: { to } })
}

/**
 * Time bucket of whole-second differences: clamp(floor(ln(max(s, 1)) / 0.301), 0, 127), in float64
 * because a float32 logarithm falls in the wrong bucket near the edges. int64 in, int32 out.
 */
export function timeBucket(f: NodeBuilder, seconds: string): string {
  const s = f.op('Max', [castTo(f, seconds, 'float64'), f.scalar(1, 'float64')])
  const bucket = f.op('Floor', [f.op('Div', [f.op('Log', [s]), f.scalar(0.301, 'float64')])])
  return castTo(f, f.op('Min', [bucket, f.scalar(127, 'float64')]), 'int32')
}

/** pos_w[clamp(distance, 0, P-1)] for int64 token distances. */
export function positionBias(f: NodeBuilder, distance: string, positions: number, table = 'pos_w') {
  const clamped = f.op('Min', [
    f.op('Max', [distance, f.scalar(0, 'int64')]),
    f.scalar(positions - 1, 'int64'),
  ])
  return f.op('Gather', [table, castTo(f, clamped, 'int32')])
}

/** time_w[bucket(t_i - t_j)] of the c new times against all of them: ([users,] c, p+c). */
function timeBias(f: NodeBuilder): string {
  const seconds = f.op('Sub', [
    f.op('Unsqueeze', ['new_times', f.ints([-1])]),
    f.op('Unsqueeze', ['times', f.ints([-2])]),
  ])
  return f.op('Gather', ['time_w', timeBucket(f, seconds)])
}

/** i - j of the `c` newest of `total` tokens against all: (c, total) int64; negative = not yet happened. */
function tokenDistance(f: NodeBuilder, c: string, total: string): string {
  const one = f.scalar(1, 'int64')
  const rows = f.op('Range', [f.op('Sub', [total, c]), total, one])
  const columns = f.op('Range', [f.scalar(0, 'int64'), total, one])
  return f.op('Sub', [
    f.op('Unsqueeze', [rows, f.ints([1])]),
    f.op('Unsqueeze', [columns, f.ints([0])]),
  ])
}

/** Length of one axis, as an int64 scalar. */
export function lengthOf(f: NodeBuilder, x: string, axis: number): string {
  const end = axis === -1 ? {} : { end: BigInt(axis + 1) }
  const length = f.op('Shape', [x], { attributes: { start: BigInt(axis), ...end } })
  return f.op('Squeeze', [length, f.ints([0])])
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

/** uvqk -> u, v, q, k, each (tokens, [users,] heads, width) */
function splitHeads(
  f: NodeBuilder,
  uvqk: string,
  shape: FunctionShape,
): [string, string, string, string] {
  const { heads: h, dqk, dv } = shape.config
  const [u = '', v = '', q = '', k = ''] = f.opN(
    'Split',
    [uvqk, f.ints([h * dv, h * dv, h * dqk, h * dqk])],
    4,
    { attributes: { axis: -1n } },
  )
  return [u, heads(f, v, dv, shape), heads(f, q, dqk, shape), heads(f, k, dqk, shape)]
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

/** Appends one column to x (tokens, [users,] H, d): `value` broadcasts to (tokens, [users,] H, 1). */
function withColumn(f: NodeBuilder, x: string, value: string): string {
  const like = f.op('Shape', [x], { attributes: { start: 0n, end: -1n } })
  const shape = f.op('Concat', [like, f.ints([1])], { attributes: { axis: 0n } })
  return f.op('Concat', [x, f.op('Expand', [value, shape])], { attributes: { axis: -1n } })
}
