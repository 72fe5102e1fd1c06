import { createHash } from 'node:crypto'
import { closeSync, openSync, writeSync } from 'node:fs'
import { Float16Array } from '@petamoriken/float16'
import { RankError } from '../errors.js'

/** Page-aligned tables can be mapped straight from the file; small tensors only need cache lines. */
const PAGE_BYTES = 4096
const LINE_BYTES = 64

/** What graphs compute in. */
export type WeightType = 'float32' | 'float16'
/** What a tensor is written as. */
export type StoredType = RowType | 'int32'
/** And a table's rows. */
export type RowType = WeightType | 'int8'

/** From here on a value rounds to infinity; a table times sqrt(D) may overflow float32 as well. */
const LIMIT: Record<WeightType, number> = { float32: Number.POSITIVE_INFINITY, float16: 65_520 }

export type WeightEntry = {
  readonly dims: readonly number[]
  readonly type: StoredType
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

/** Integers are written as they are. */
type Numbers = Float32Array | Int8Array | Int32Array

/** Values are asked for when they are written, a chunk at a time: a tensor may be larger than memory. */
export type Tensor = {
  readonly dims: readonly number[]
  /** The file's own type where absent. */
  readonly type?: StoredType
  chunks(): Iterable<Numbers>
}

/** A tensor that is in memory. */
export function dense(dims: readonly number[], data: Float32Array | Int8Array): Tensor {
  return {
    dims,
    ...(data instanceof Int8Array && { type: 'int8' }),
    chunks: () => [data],
  }
}

/** Told while a tensor is written: numbers of it so far, of so many. */
export type OnWritten = (name: string, done: number, total: number) => void

/**
 * Writes tensors into one file, in the given order, as `type` where they have none of their own; gives their
 * places, SHA-256 and size. Memory is that of a chunk.
 * @throws {RankError} WEIGHTS_INVALID at a value beyond the type's range
 */
export function writeWeightFile(
  folder: string,
  file: string,
  tensors: ReadonlyMap<string, Tensor>,
  fileType: WeightType,
  onWritten: OnWritten = () => {},
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
    for (const [name, { dims, type = fileType, chunks }] of tensors) {
      const total = dims.reduce((product, dim) => product * dim, 1)
      const length = total * WIDTH[type]
      const align = length >= PAGE_BYTES ? PAGE_BYTES : LINE_BYTES
      append(new Uint8Array((align - (position % align)) % align))
      entries.set(name, { dims, type, offset: position, length })
      let done = 0
      for (const data of chunks()) {
        append(encode(data, type, name, done))
        done += data.length
        onWritten(name, done, total)
      }
      if (done !== total) throw new Error(`tensor ${name} has ${done} numbers, not ${total}`)
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

const WIDTH: Record<StoredType, number> = { float32: 4, float16: 2, int8: 1, int32: 4 }

/** `data` are the values of a tensor from index `start` on. */
function encode(data: Numbers, type: StoredType, name: string, start: number): Uint8Array {
  if (!(data instanceof Float32Array) || type === 'int8' || type === 'int32') {
    const own = { Float32Array: 'float32', Int8Array: 'int8', Int32Array: 'int32' }
    if (own[data[Symbol.toStringTag]] === type) return viewBytes(data)
    throw new Error(`tensor ${name}: integers are written as they are, and not as ${type}`)
  }
  const limit = LIMIT[type]
  for (let i = 0; i < data.length; i++) {
    if (Math.abs(data[i] ?? 0) < limit) continue
    throw new RankError(
      'WEIGHTS_INVALID',
      `tensor ${name} does not fit ${type}: got ${data[i]} at ${start + i}`,
    )
  }
  return type === 'float16' ? toFloat16(data) : viewBytes(data)
}

function viewBytes(data: Numbers): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
}

/** IEEE half precision, round to nearest even. */
export function toFloat16(data: Float32Array): Uint8Array {
  const { buffer, byteOffset, byteLength } = new Float16Array(data)
  return new Uint8Array(buffer, byteOffset, byteLength)
}
