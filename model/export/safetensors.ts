import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { getFloat16 } from '@petamoriken/float16'
import { show } from '../check.js'
import { RankError } from '../errors.js'

// A header comes from whoever made the file: every number in it is checked before it is used.
/** 16 MiB: an entry takes about 100 bytes, so this is room for 160,000 tensors. */
const MAX_HEADER_BYTES = 16 * 2 ** 20
/** The largest public models have a few thousand tensors. */
const MAX_TENSORS = 100_000
const MAX_NAME_LENGTH = 512
const MAX_DIMS = 8
/** 2^32: beyond any table; keeps products of dimensions exact while they are checked. */
const MAX_DIM = 2 ** 32

const WIDTH = { F32: 4, F16: 2, BF16: 2, I64: 8 } as const

type Dtype = keyof typeof WIDTH
type Entry = {
  readonly dtype: string
  readonly dims: readonly number[]
  readonly start: number
  readonly end: number
}

/** An open safetensors file: names and shapes at once, data when asked for. */
export type Safetensors = {
  /** Tensor names in the order of their data. */
  readonly names: readonly string[]
  dims(name: string): readonly number[]
  /** The tensor's values as float32, copied. @throws {RankError} WEIGHTS_INVALID for a type other than F32, F16, BF16, I64 */
  read(name: string): Float32Array
  /** Rows start .. end-1 of it along its first axis: memory is theirs alone. @throws as `read` */
  readRows(name: string, start: number, end: number): Float32Array
  close(): void
}

/**
 * Opens a safetensors file: u64 header length, JSON header, data.
 * @throws {RankError} WEIGHTS_INVALID when the header is not what the format allows
 * @see https://github.com/huggingface/safetensors#format
 */
export function openSafetensors(file: string): Safetensors {
  let fd: number
  try {
    fd = openSync(file, 'r')
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RankError('WEIGHTS_INVALID', `cannot open ${file}: ${why}`, { cause })
  }
  try {
    const stat = fstatSync(fd)
    if (!stat.isFile()) throw new RankError('WEIGHTS_INVALID', `${file} is not a file`)
    const size = stat.size
    const { header, dataStart } = readHeader(fd, size, file)
    const entries = parseHeader(header, size - dataStart, file)
    const entry = (name: string) => {
      const found = entries.get(name)
      if (found === undefined)
        throw new RankError('WEIGHTS_INVALID', `${file}: no tensor ${show(name)}`)
      return found
    }
    const dtypeOf = (name: string): Dtype => {
      const { dtype } = entry(name)
      if (isDtype(dtype)) return dtype
      throw new RankError(
        'WEIGHTS_INVALID',
        `${file}: tensor ${show(name)} must be F32, F16, BF16 or I64, got ${show(dtype)}`,
      )
    }
    return {
      names: [...entries.keys()],
      dims: (name) => entry(name).dims,
      read(name) {
        const { start, end } = entry(name)
        const dtype = dtypeOf(name)
        return toFloat32(readExactly(fd, dataStart + start, end - start, file), dtype)
      },
      readRows(name, first, last) {
        const { start, end, dims } = entry(name)
        const dtype = dtypeOf(name)
        const rowBytes = (end - start) / Math.max(1, dims[0] ?? 1)
        const from = dataStart + start + first * rowBytes
        return toFloat32(readExactly(fd, from, (last - first) * rowBytes, file), dtype)
      },
      close: () => closeSync(fd),
    }
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

function readHeader(fd: number, size: number, file: string) {
  const fail = (message: string) => new RankError('WEIGHTS_INVALID', `${file}: ${message}`)
  if (size < 8) throw fail(`a safetensors file has at least 8 bytes, got ${size}`)
  const length = new DataView(readExactly(fd, 0, 8, file).buffer).getBigUint64(0, true)
  if (length > BigInt(MAX_HEADER_BYTES)) {
    throw fail(`header must be at most ${MAX_HEADER_BYTES} bytes, claims ${length}`)
  }
  const headerBytes = Number(length)
  if (8 + headerBytes > size) {
    throw fail(`header claims ${headerBytes} bytes, the file has ${size - 8} after its length`)
  }
  const text = Buffer.from(readExactly(fd, 8, headerBytes, file)).toString('utf8')
  let header: unknown
  try {
    header = JSON.parse(text)
  } catch (cause) {
    throw new RankError('WEIGHTS_INVALID', `${file}: header is not JSON`, { cause })
  }
  return { header, dataStart: 8 + headerBytes }
}

/** Entries in the order of their data; together they cover the data exactly, as the format demands. */
function parseHeader(header: unknown, dataBytes: number, file: string): Map<string, Entry> {
  const fail = (message: string) => new RankError('WEIGHTS_INVALID', `${file}: ${message}`)
  if (typeof header !== 'object' || header === null || Array.isArray(header)) {
    throw fail(`header must be a JSON object, got ${show(header)}`)
  }
  const named = Object.entries(header).filter(([name]) => name !== '__metadata__')
  if (named.length > MAX_TENSORS) throw fail(`at most ${MAX_TENSORS} tensors, got ${named.length}`)
  const entries = named.map(([name, value]) => {
    const where = `tensor ${show(name)}`
    if (name.length > MAX_NAME_LENGTH) throw fail(`${where}: name longer than ${MAX_NAME_LENGTH}`)
    if (typeof value !== 'object' || value === null) throw fail(`${where} must be an object`)
    const { dtype, shape, data_offsets: offsets }: Record<string, unknown> = { ...value }
    if (typeof dtype !== 'string') throw fail(`${where} lacks a dtype`)
    if (
      !Array.isArray(shape) ||
      shape.length > MAX_DIMS ||
      !shape.every((d) => isCount(d, MAX_DIM))
    ) {
      throw fail(`${where} must have at most ${MAX_DIMS} dimensions <= 2^32, got ${show(shape)}`)
    }
    const limits = Array.isArray(offsets) && offsets.length === 2 ? offsets : []
    const [start, end] = limits
    if (!isCount(start, dataBytes) || !isCount(end, dataBytes) || start > end) {
      throw fail(`${where} must lie within ${dataBytes} data bytes, got ${show(offsets)}`)
    }
    const elements = shape.reduce((product, dim) => product * BigInt(dim), 1n)
    if (isDtype(dtype) && elements * BigInt(WIDTH[dtype]) !== BigInt(end - start)) {
      throw fail(`${where} of shape ${show(shape)} ${dtype} does not fill its ${end - start} bytes`)
    }
    const entry: Entry = { dtype, dims: shape, start, end }
    return [name, entry] as const
  })
  entries.sort(([, a], [, b]) => a.start - b.start || a.end - b.end)
  let covered = 0
  for (const [name, { start, end }] of entries) {
    if (start !== covered) {
      throw fail(
        `tensor ${show(name)} starts at byte ${start}, expected ${covered}: holes and overlaps are refused`,
      )
    }
    covered = end
  }
  if (covered !== dataBytes) {
    throw fail(`tensors cover ${covered} of ${dataBytes} data bytes`)
  }
  return new Map(entries)
}

function isCount(value: unknown, max: number): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= max
}

function isDtype(dtype: string): dtype is Dtype {
  return Object.hasOwn(WIDTH, dtype)
}

function readExactly(
  fd: number,
  position: number,
  length: number,
  file: string,
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length)
  for (let done = 0; done < length; ) {
    const got = readSync(fd, bytes, done, length - done, position + done)
    if (got === 0)
      throw new RankError('WEIGHTS_INVALID', `${file}: ends before byte ${position + length}`)
    done += got
  }
  return bytes
}

function toFloat32(bytes: Uint8Array<ArrayBuffer>, dtype: Dtype): Float32Array {
  if (dtype === 'F32') return new Float32Array(bytes.buffer)
  const view = new DataView(bytes.buffer)
  if (dtype === 'I64') return Float32Array.from(new BigInt64Array(bytes.buffer), Number)
  const out = new Float32Array(bytes.length / 2)
  if (dtype === 'F16') {
    for (let i = 0; i < out.length; i++) out[i] = getFloat16(view, i * 2, true)
  } else {
    // bfloat16 is the upper half of a float32.
    const bits = new Uint32Array(out.buffer)
    for (let i = 0; i < out.length; i++) bits[i] = view.getUint16(i * 2, true) << 16
  }
  return out
}
