import type { FunctionShape } from './functions.js'
import type { NodeBuilder, TensorType } from './nodes.js'
import { castTo } from './ops.js'

/** Columns that the bias takes beside a head's own: tensor cores want rows of 16 bytes' multiples. */
export function biasColumns(type: TensorType): number {
  return type === 'float16' ? 8 : 1
}

/**
 * The bias in the first column behind x (tokens, [users,] H, d), zeros in the others; `bias` is
 * (tokens, [users,] 1, 1). In float16, which is for GPUs, by padding and a sum: ONNX Runtime's CUDA
 * kernel for a Concat of unequal parts reads its pointers from host memory at every launch, which a
 * replayed CUDA graph finds overwritten.
 */
export function withBias(f: NodeBuilder, x: string, bias: string, shape: FunctionShape): string {
  const { config, type, batched } = shape
  if (type !== 'float16') {
    const perHead = f.ints([1, ...(batched ? [1] : []), config.heads, 1])
    return f.op('Concat', [x, f.op('Expand', [bias, perHead])], { attributes: { axis: -1n } })
  }
  const columns = biasColumns(type)
  return f.op('Add', [
    pad(f, x, { before: 0, after: columns, value: 0 }, shape),
    pad(f, bias, { before: config.dqk, after: columns - 1, value: 0 }, shape),
  ])
}

type Padding = { readonly before: number; readonly after: number; readonly value: number }

/** Columns of one value around x (tokens, [users,] heads, width). */
export function pad(
  f: NodeBuilder,
  x: string,
  { before, after, value }: Padding,
  { type, batched }: FunctionShape,
): string {
  const others = Array.from({ length: batched ? 3 : 2 }, () => 0)
  const pads = f.ints([...others, before, ...others, after])
  return f.op('Pad', [x, pads, castTo(f, f.scalar(value, 'float32'), type, 'float32')])
}
