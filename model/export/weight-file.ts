import { createHash } from 'node:crypto'
import { closeSync, openSync, writeSync } from 'node:fs'
import { Float16Array } from '@petamoriken/float16'
import { RankError } from '../errors.js'

/** Page-aligned tables can be mapped straight from the file; small tensors only need cache lines. */
const PAGE_BYTES = 4096
const LINE_BYTES = 64

export type WeightType = 'float32' | 'float16'

/** From here on a value rounds to infinity; a table times sqrt(D) may overflow float32 as well. */
const LIMIT = {
  float32: Number.POSITIVE_INFINITY,
  float16: 65_520,
  int32: Number.POSITIVE_INFINITY,
} as const

export type WeightEntry = {
  readonly dims: readonly number[]
  readonly type: WeightType | 'int32'
  /** Bytes from the start of the file. */
  readonly offset: number
  /** Bytes. */
  readonly length: number
}

/** The bundle's one external data file: which tensor lies where. */
export type WeightFile = {
  readonly file: string
  entry(name: string): WeightEntry
}

/** Int32 and what has a `type` of its own keep their type, whatever the file's is. */
export type Tensor = {
  readonly dims: readonly number[]
  readonly data: Float32Array | Int32Array
  readonly type?: 'float32'
}

/**
 * Writes tensors into one file, in the given order, as `type`; gives their places, SHA-256 and size.
 * @throws {RankError} WEIGHTS_INVALID at a value beyond the type's range
 */
export function writeWeightFile(
  folder: string,
  file: string,
  tensors: ReadonlyMap<string, Tensor>,
  fileType: WeightType,
): WeightFile & { readonly sha256: string; readonly bytes: number } {
  const entries = new Map<string, WeightEntry>()
  const hash = createHash('sha256')
  const fd = openSync(`${folder}/${file}`, 'w')
  let position = 0
  const append = (bytes: Uint8Array) => {
    for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done)
    hash.update(bytes)
    position += bytes.length
  }
  try {
    for (const [name, tensor] of tensors) {
      const { dims, data } = tensor
      const type = data instanceof Int32Array ? 'int32' : (tensor.type ?? fileType)
      const beyond = data.findIndex((value) => Math.abs(value) >= LIMIT[type])
      if (beyond !== -1) {
        throw new RankError(
          'WEIGHTS_INVALID',
          `tensor ${name} does not fit ${type}: got ${data[beyond]} at ${beyond}`,
        )
      }
      const bytes =
        data instanceof Float32Array && type === 'float16' ? toFloat16(data) : viewBytes(data)
      const align = bytes.length >= PAGE_BYTES ? PAGE_BYTES : LINE_BYTES
      append(new Uint8Array((align - (position % align)) % align))
      entries.set(name, { dims, type, offset: position, length: bytes.length })
      append(bytes)
    }
  } finally {
    closeSync(fd)
  }
  return {
    file,
    sha256: hash.digest('hex'),
    bytes: position,
    entry(name) {
      const entry = entries.get(name)
      if (entry === undefined) throw new Error(`no weight named ${name}`)
      return entry
    },
  }
}

function viewBytes(data: Float32Array | Int32Array): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
}

/** IEEE half precision, round to nearest even. */
function toFloat16(data: Float32Array): Uint8Array {
  const { buffer, byteOffset, byteLength } = new Float16Array(data)
  return new Uint8Array(buffer, byteOffset, byteLength)
}
