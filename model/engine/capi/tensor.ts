import type { KvPrecision } from '../codec/graphs.js'
import type { Memory, Ort, Pointer } from './ort.js'

/** Of ONNX's TensorProto.DataType. */
export const ELEMENT = {
  float32: 1,
  int8: 3,
  uint16: 4,
  int32: 6,
  int64: 7,
  float16: 10,
  bfloat16: 16,
} as const

const ELEMENT_BYTES: ReadonlyMap<number, number> = new Map([
  [ELEMENT.float32, 4],
  [ELEMENT.int8, 1],
  [ELEMENT.uint16, 2],
  [ELEMENT.int32, 4],
  [ELEMENT.int64, 8],
  [ELEMENT.float16, 2],
  [ELEMENT.bfloat16, 2],
])

export const KV_ELEMENT: Readonly<Record<KvPrecision, number>> = {
  fp32: ELEMENT.float32,
  fp16: ELEMENT.float16,
  bf16: ELEMENT.bfloat16,
}

/** Tensors that share memory begin at multiples of it: what cudaMalloc gives, more than a CPU kernel wants. */
const ALIGN_BYTES = 256

/** NaN for a type that is not one of ELEMENT's. */
export function elementBytes(type: number): number {
  return ELEMENT_BYTES.get(type) ?? Number.NaN
}

export function tensorBytes(dims: readonly number[], type: number): number {
  return dims.reduce((product, dim) => product * dim, elementBytes(type))
}

/** The next offset at or behind `bytes` where a tensor may begin. */
export function align(bytes: number): number {
  return Math.ceil(bytes / ALIGN_BYTES) * ALIGN_BYTES
}

/** An OrtValue over `data`, which it does not own; the caller releases it. */
export function createTensor(
  ort: Pick<Ort, 'CreateTensorWithDataAsOrtValue'>,
  info: Pointer,
  data: Memory,
  dims: readonly number[],
  type: number,
): Pointer {
  // An array's own size, so that ONNX Runtime refuses dims that go beyond its end.
  const bytes = typeof data === 'bigint' ? tensorBytes(dims, type) : data.byteLength
  const shape = BigInt64Array.from(dims, BigInt)
  return ort.CreateTensorWithDataAsOrtValue(info, data, bytes, shape, dims.length, type)
}
