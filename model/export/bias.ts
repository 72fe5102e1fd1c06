import type { HstuConfig } from '../config.js'
import type { NodeBuilder } from './onnx.js'
import { castTo, lengthOf } from './ops.js'

/**
 * Time bucket of whole-second differences: clamp(floor(ln(max(s, 1)) / 0.301), 0, 127), in float64
 * because a float32 logarithm falls in the wrong bucket near the edges. float64 in, int32 out.
 */
export function timeBucket(f: NodeBuilder, seconds: string): string {
  const s = f.op('Max', [seconds, f.scalar(1, 'float64')])
  // Nothing is below 0 here, so that the cast's truncation is the floor.
  const bucket = f.op('Div', [f.op('Log', [s]), f.scalar(0.301, 'float64')])
  return f.op('Min', [castTo(f, bucket, 'int32'), f.scalar(127, 'int32')])
}

/** clamp(distance, 0, P-1), the row of `pos_w`: int32 in and out. */
export function positionRow(f: NodeBuilder, distance: string, { positions }: HstuConfig): string {
  const past = f.op('Max', [distance, f.scalar(0, 'int32')])
  return f.op('Min', [past, f.scalar(positions - 1, 'int32')])
}

/** pos_w[distance] + time_w[bucket(t_i - t_j)] of the c new tokens against all: ([users, 1,] c·(p+c)). */
export function causalBias(
  f: NodeBuilder,
  distance: string,
  { config, batched }: { readonly config: HstuConfig; readonly batched: boolean },
): string {
  const seconds = f.op('Sub', [
    f.op('Unsqueeze', ['new_times', f.ints([-1])]),
    f.op('Unsqueeze', ['times', f.ints([-2])]),
  ])
  // Gather copies element by element: 4 ns each on CPUs, where GatherElements of a flat index takes 1.
  const look = (table: string, index: string) =>
    f.op('GatherElements', [table, f.op('Reshape', [index, f.ints([-1])])])
  const position = look('pos_w', positionRow(f, distance, config))
  const buckets = timeBucket(f, castTo(f, seconds, 'float64'))
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
