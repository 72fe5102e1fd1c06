import { isUtf8 } from 'node:buffer'
import { show } from '../../model/check.js'
import { RankError } from '../../model/errors.js'

/**
 * Tensors of the Open Inference Protocol v2, in JSON or behind it (binary tensor data extension).
 * @see kserve/open-inference-protocol, specification/protocol/inference_rest.md
 * @see triton-inference-server/server, docs/protocol/extension_binary_data.md
 */

/** An input as it came: its data in JSON, or so many bytes behind it. */
export type InputTensor = {
  readonly name: string
  readonly datatype: string
  readonly shape: readonly number[]
  readonly data: unknown
  readonly bytes: Uint8Array | undefined
}

type Reader = (view: DataView, at: number) => number | bigint

const INTEGERS = new Map<string, { readonly size: number; readonly read: Reader }>([
  ['INT32', { size: 4, read: (view, at) => view.getInt32(at, true) }],
  ['UINT32', { size: 4, read: (view, at) => view.getUint32(at, true) }],
  ['INT64', { size: 8, read: (view, at) => view.getBigInt64(at, true) }],
  ['UINT64', { size: 8, read: (view, at) => view.getBigUint64(at, true) }],
])

/**
 * The elements as strings: BYTES, or whole numbers as ids are written.
 * @throws {RankError} INVALID_REQUEST with the tensor's name, what was expected and what was got
 */
export function stringsOf(tensor: InputTensor): string[] {
  if (tensor.datatype !== 'BYTES') return wholeNumbersOf(tensor).map(String)
  const { bytes } = tensor
  if (bytes !== undefined) return inOrder(tensor, splitBytes(tensor, bytes))
  const values = flat(tensor)
  const wrong = values.findIndex((value) => typeof value !== 'string')
  if (wrong >= 0) {
    throw refused(tensor, `element ${wrong} must be a string, got ${show(values[wrong])}`)
  }
  return inOrder(tensor, values as string[])
}

/** @throws {RankError} INVALID_REQUEST */
export function wholeNumbersOf(tensor: InputTensor): (number | bigint)[] {
  const { datatype, bytes } = tensor
  const integer = INTEGERS.get(datatype)
  if (integer === undefined) {
    const expected = [...INTEGERS.keys()].join(', ')
    throw refused(tensor, `datatype must be one of ${expected}, got ${show(datatype)}`)
  }
  const { size, read } = integer
  if (bytes === undefined) {
    const values = flat(tensor)
    const wrong = values.findIndex((value) => !Number.isSafeInteger(value))
    if (wrong >= 0) {
      const got = show(values[wrong])
      throw refused(tensor, `element ${wrong} must be a whole number up to 2^53, got ${got}`)
    }
    return inOrder(tensor, values as number[])
  }
  if (bytes.byteLength % size !== 0) {
    const message = `${datatype} takes ${size} bytes an element, got ${bytes.byteLength}`
    throw refused(tensor, message)
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  return inOrder(
    tensor,
    Array.from({ length: bytes.byteLength / size }, (_, i) => read(view, i * size)),
  )
}

/** BYTES: each element is a length, little-endian uint32, and so many bytes of UTF-8. */
function splitBytes(tensor: InputTensor, bytes: Uint8Array): string[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const strings: string[] = []
  let at = 0
  while (at < bytes.byteLength) {
    const start = at + 4
    const end = start <= bytes.byteLength ? start + view.getUint32(at, true) : Number.MAX_VALUE
    if (end > bytes.byteLength) {
      throw refused(tensor, `element ${strings.length} goes beyond its ${bytes.byteLength} bytes`)
    }
    const text = buffer.subarray(start, end)
    if (!isUtf8(text)) throw refused(tensor, `element ${strings.length} must be UTF-8`)
    strings.push(text.toString('utf8'))
    at = end
  }
  return strings
}

/** JSON data may be nested as the shape is, or flat. */
function flat(tensor: InputTensor): readonly unknown[] {
  const { data } = tensor
  if (!Array.isArray(data)) throw refused(tensor, `data must be an array, got ${show(data)}`)
  return data.some(Array.isArray) ? data.flat(MAX_AXES) : data
}

/** Of a tensor. */
export const MAX_AXES = 4

/** The values, once the shape says as many. */
function inOrder<T>(tensor: InputTensor, values: T[]): T[] {
  const { shape } = tensor
  const count = shape.reduce((product, length) => product * length, 1)
  if (count === values.length) return values
  throw refused(tensor, `shape [${shape.join(', ')}] has ${count} elements, got ${values.length}`)
}

export function refused({ name }: InputTensor, message: string): RankError {
  return new RankError('INVALID_REQUEST', `input ${show(name)}: ${message}`)
}
