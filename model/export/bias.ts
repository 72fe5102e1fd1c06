import type { HstuConfig } from '../config.js'
import type { FunctionShape } from './functions.js'
import type { NodeBuilder, TensorType } from './nodes.js'
import { castTo, lengthOf } from './ops.js'

/**
 * Time bucket of whole-second differences: clamp(floor(ln(max(s, 1)) / 0.301), 0, 127), in float64
 * because a float32 logarithm falls in the wrong bucket near the edges. Variant `research` takes |s| and
 * has a bucket more. float64 in, int32 out.
 */
export function timeBucket(f: NodeBuilder, seconds: string, isNext = false): string {
  const size = isNext ? f.op('Abs', [seconds]) : seconds
  const s = f.op('Max', [size, f.scalar(1, 'float64')])
  // Nothing is below 0 here, so that the cast's truncation is the floor.
  const bucket = f.op('Div', [f.op('Log', [s]), f.scalar(0.301, 'float64')])
  return f.op('Min', [castTo(f, bucket, 'int32'), f.scalar(isNext ? 128 : 127, 'int32')])
}

/** clamp(distance, 0, P-1), the row of `pos_w`: int32 in and out. */
export function positionRow(f: NodeBuilder, distance: string, { positions }: HstuConfig): string {
  const past = f.op('Max', [distance, f.scalar(0, 'int32')])
  return f.op('Min', [past, f.scalar(positions - 1, 'int32')])
}

type BiasShape = Pick<FunctionShape, 'config' | 'batched' | 'isNext'>

/** pos_w[distance] + time_w[bucket(t_i - t_j)] of the c new tokens against all: ([users, 1,] c·(p+c)). */
export function causalBias(
  f: NodeBuilder,
  distance: string,
  { config, batched, isNext }: BiasShape,
): string {
  const seconds = f.op('Sub', [
    f.op('Unsqueeze', ['new_times', f.ints([-1])]),
    f.op('Unsqueeze', ['times', f.ints([-2])]),
  ])
  // Gather copies element by element: 4 ns each on CPUs, where GatherElements of a flat index takes 1.
  const look = (table: string, index: string) =>
    f.op('GatherElements', [table, f.op('Reshape', [index, f.ints([-1])])])
  const position = look('pos_w', positionRow(f, distance, config))
  const buckets = timeBucket(f, castTo(f, seconds, 'float64'), isNext)
  const time = look('time_w', buckets)
  if (!batched) return f.op('Add', [time, position])
  const perUser = f.op('Reshape', [time, f.op('Shape', [buckets])])
  return f.op('Add', [f.op('Reshape', [perUser, f.ints([0, 1, -1])]), position])
}

/**
 * Positions of the new tokens (c, 1) and of all (1, p+c), int32. They are read off the times, which
 * all layers share: ONNX Runtime then computes distances and mask once for all of them.
 */
export function tokenIndices(f: NodeBuilder): { readonly rows: string; readonly columns: string } {
  const all = f.op('Range', [f.scalar(0, 'int32'), lengthOf(f, 'times', -1), f.scalar(1, 'int32')])
  const rows = f.op('Slice', [
    all,
    f.op('Neg', [f.op('Shape', ['new_times'], { attributes: { start: -1n } })]),
    f.ints([Number.MAX_SAFE_INTEGER]),
  ])
  return {
    rows: f.op('Unsqueeze', [rows, f.ints([1])]),
    columns: f.op('Unsqueeze', [all, f.ints([0])]),
  }
}

export type Request = {
  /** ([users,] n) int64 seconds of the history. */
  readonly times: string
  /** (users), or one, int64 seconds. */
  readonly queryTimes: string
  /** (users) int64: tokens before the padding. Read where the graph is batched. */
  readonly lengths: string
  /** (1) or (users, 1) float64: the self term's difference where it is not 0. */
  readonly selfSeconds?: string | undefined
}

/**
 * Relative bias that all candidates of a request share: ([users,] n+1), the self term last. Equal nodes of
 * several layers become one when a session loads the graph.
 */
export function candidateBias(
  f: NodeBuilder,
  { times, queryTimes, lengths, selfSeconds }: Request,
  [positionTable, timeTable]: readonly [string, string],
  { config, batched, isNext }: BiasShape,
): string {
  const query = batched ? f.op('Unsqueeze', [queryTimes, f.ints([1])]) : queryTimes
  // The self term's difference is the 0 behind the others. No Concat: see functions.ts, withBias.
  const seconds = castTo(f, f.op('Sub', [query, times]), 'float64')
  const padded = f.op('Pad', [seconds, f.ints(batched ? [0, 0, 0, 1] : [0, 1])])
  const bucketOf = (differences: string) => timeBucket(f, differences, isNext)
  const withoutSelf = selfSeconds === undefined ? bucketOf(padded) : undefined
  const one = f.scalar(1, 'int32')
  const minusOne = f.scalar(-1, 'int32')
  // n, n-1, …, 0; (users, n+1) counts from each user's own length: what is below 0 counts as 0.
  const distance = batched
    ? f.op('Sub', [
        columnOf(f, lengths),
        f.op('Range', [f.scalar(0, 'int32'), f.op('Add', [lengthOf(f, times, 1), one]), one]),
      ])
    : f.op('Range', [lengthOf(f, times, 0), minusOne, minusOne])
  // The self term is where no distance is left; so is the padding, which counts for nothing.
  const withSelf = (self: string) => {
    const isSelf = f.op('LessOrEqual', [distance, f.scalar(0, 'int32')])
    return bucketOf(f.op('Where', [isSelf, self, padded]))
  }
  const bucket = withoutSelf ?? withSelf(selfSeconds ?? '')
  return f.op('Add', [
    f.op('Gather', [positionTable, positionRow(f, distance, config)]),
    f.op('Gather', [timeTable, bucket]),
  ])
}

/**
 * V (n, users, width) with zeros for the padding behind each user's history. n is read off the times, which
 * all layers share.
 */
export function realTokens(
  f: NodeBuilder,
  v: string,
  { times, lengths }: Request,
  type: TensorType,
): string {
  const end = lengthOf(f, times, 1)
  const range = f.op('Range', [f.scalar(0, 'int32'), end, f.scalar(1, 'int32')])
  const remaining = f.op('Sub', [columnOf(f, lengths), range]) // (users, n): > 0 for real tokens
  const isReal = castTo(f, f.op('Greater', [remaining, f.scalar(0, 'int32')]), type)
  const valid = f.op('Transpose', [isReal], { attributes: { perm: [1n, 0n] } })
  return f.op('Mul', [v, f.op('Unsqueeze', [valid, f.ints([2])])])
}

function columnOf(f: NodeBuilder, lengths: string): string {
  return castTo(f, f.op('Unsqueeze', [lengths, f.ints([1])]), 'int32')
}
