import type { Tensor } from 'onnxruntime-node'

/**
 * A float16 input. On Node 24 the Tensor constructor makes a Float16Array that the binding then
 * refuses (microsoft/onnxruntime issue 32323); a plain object of the same fields works on 20, 22, 24.
 */
export function float16Tensor(data: Uint16Array, dims: readonly number[]): Tensor {
  const tensor: unknown = { type: 'float16', data, dims, location: 'cpu', size: data.length }
  return tensor as Tensor
}
