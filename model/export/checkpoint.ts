import { fromBf16, toBf16 } from '../bf16.js'
import { show } from '../check.js'
import type { EmbeddingLayout } from '../embedding.js'
import { RankError } from '../errors.js'
import { createRandom } from '../random.js'
import type { Tensor } from './weight-file.js'

/** Where weights come from: a safetensors file, or a random generator. */
export type WeightSource = {
  readonly names: readonly string[]
  dims(name: string): readonly number[]
  /** Values, row-major, float32. */
  read(name: string): Float32Array
  /** Rows start .. end-1 along the first axis, of what need not fit into memory; cut out of `read` where absent. */
  readRows?(name: string, start: number, end: number): Float32Array
}

/** A tensor of a checkpoint, under its name there. */
export type CheckpointTensor = {
  readonly name: string
  readonly dims: readonly number[]
  /** What random weights of it look like: near 1, or uniform with variance 1/spread. */
  readonly init: 'gain' | { readonly spread: number }
}

/**
 * Holds a source to the tensors that a model needs, no more and no less.
 * @throws {RankError} WEIGHTS_INVALID naming the tensor that is missing, too many or misshaped
 */
export function checkTensors(
  source: WeightSource,
  shapes: ReadonlyMap<string, readonly number[]>,
): void {
  const given = new Set(source.names)
  for (const [name, dims] of shapes) {
    if (!given.has(name)) {
      throw new RankError(
        'WEIGHTS_INVALID',
        `tensor ${name} is missing: expected shape ${show(dims)}${hintOf(source.names, shapes)}`,
      )
    }
    const got = source.dims(name)
    if (got.length !== dims.length || got.some((dim, i) => dim !== dims[i])) {
      throw new RankError(
        'WEIGHTS_INVALID',
        `tensor ${name} must have shape ${show(dims)}, got ${show(got)}`,
      )
    }
  }
  const extra = source.names.filter((name) => !shapes.has(name))
  if (extra.length > 0) {
    throw new RankError(
      'WEIGHTS_INVALID',
      `${extra.length} tensors have no place in this model: ${show(extra)}`,
    )
  }
}

/** A name that only checkpoints of this variant have. */
const SIGNATURES = {
  paper: /^layers\.\d+\.uvqk\.weight$/,
  research: /^_hstu\._attention_layers\.\d+\._uvqk$/,
  'dlrm-v3': /^_hstu_transducer\._stu_module\./,
} as const

/** Says so where the tensors are those of another variant than the config's. */
function hintOf(names: readonly string[], shapes: ReadonlyMap<string, unknown>): string {
  for (const [variant, signature] of Object.entries(SIGNATURES)) {
    const found = names.find((name) => signature.test(name))
    if (found !== undefined && ![...shapes.keys()].some((name) => signature.test(name)))
      return `; ${found} is a tensor of variant ${variant}`
  }
  return ''
}

const PREFIX = 'module.'

/**
 * The same tensors by their names without `module.`, which DDP puts before all, and without those that
 * `isIgnored` says inference does not read.
 */
export function withoutPrefix(
  source: WeightSource,
  isIgnored: (name: string) => boolean,
): WeightSource {
  const isPrefixed =
    source.names.length > 0 && source.names.every((name) => name.startsWith(PREFIX))
  const prefix = isPrefixed ? PREFIX : ''
  return {
    names: source.names.map((name) => name.slice(prefix.length)).filter((name) => !isIgnored(name)),
    dims: (name) => source.dims(`${prefix}${name}`),
    read: (name) => source.read(`${prefix}${name}`),
    readRows: (name, start, end) => rowsOf(source, `${prefix}${name}`, start, end),
  }
}

/** Rows start .. end-1 of a tensor along its first axis. */
export function rowsOf(
  source: WeightSource,
  name: string,
  start: number,
  end: number,
): Float32Array {
  if (source.readRows !== undefined) return source.readRows(name, start, end)
  const width = widthOf(source.dims(name))
  return source.read(name).subarray(start * width, end * width)
}

/** Numbers of one row along the first axis. */
export function widthOf(dims: readonly number[]): number {
  return dims.slice(1).reduce((product, dim) => product * dim, 1)
}

/** @throws {RankError} WEIGHTS_INVALID at a value that is not finite */
export function readFinite(source: WeightSource, name: string): Float32Array {
  return finite(source.read(name), name, 0)
}

/** @throws {RankError} WEIGHTS_INVALID at a value that is not finite */
export function finiteRows(
  source: WeightSource,
  name: string,
  start: number,
  end: number,
): Float32Array {
  return finite(rowsOf(source, name, start, end), name, start * widthOf(source.dims(name)))
}

/** `data` are a tensor's values from index `start` on. */
function finite(data: Float32Array, name: string, start: number): Float32Array {
  for (let i = 0; i < data.length; i++) {
    if (Number.isFinite(data[i])) continue
    throw new RankError(
      'WEIGHTS_INVALID',
      `tensor ${name} must be finite, got ${data[i]} at ${start + i}`,
    )
  }
  return data
}

/** What of a checkpoint's tensor goes where in the one embedding table. */
export type TablePart = {
  /** The tensor, (rows, width). */
  readonly name: string
  /** Row of the table that its first row becomes. */
  readonly at: number
  /** Rows of it before that one, which are left out. */
  readonly skip?: number
  /** What its values are multiplied by. */
  readonly factor?: number
}

/**
 * The one embedding table of some tensors, which is never in memory as a whole; rows of no part are zeros.
 * @throws {RankError} WEIGHTS_INVALID when it has more rows than an id can name
 */
export function tableOf(
  source: WeightSource,
  parts: readonly TablePart[],
  { rows }: EmbeddingLayout,
  width: number,
): MadeTensor {
  if (rows > MOST_ROWS) {
    throw new RankError(
      'WEIGHTS_INVALID',
      `embedding tables must have at most ${MOST_ROWS} rows together, got ${rows}`,
    )
  }
  const readRows = (start: number, end: number) => {
    const out = new Float32Array((end - start) * width)
    for (const { name, at, skip = 0, factor = 1 } of parts) {
      const from = Math.max(start, at)
      const to = Math.min(end, at + (source.dims(name)[0] ?? 0) - skip)
      if (from >= to) continue
      const data = finiteRows(source, name, from - at + skip, to - at + skip)
      out.set(factor === 1 ? data : scaled(data, factor), (from - start) * width)
    }
    return out
  }
  return { dims: [rows, width], read: () => readRows(0, rows), readRows }
}

/** Ids are int32. */
const MOST_ROWS = 2 ** 31 - 1

/** Of float32 that are read at a time. */
const CHUNK_BYTES = 8 * 2 ** 20

/** A tensor's values in chunks of whole rows, as many as fit into 8 MiB. */
export function* rowChunks(
  source: WeightSource,
  name: string,
): Generator<{ readonly start: number; readonly data: Float32Array }> {
  const dims = source.dims(name)
  const [rows = 1] = dims
  const step = Math.max(1, Math.floor(CHUNK_BYTES / 4 / widthOf(dims)))
  for (let start = 0; start < rows; start += step) {
    yield { start, data: finiteRows(source, name, start, Math.min(start + step, rows)) }
  }
}

/** Times `factor`. */
export function scaled(data: Float32Array, factor: number): Float32Array {
  return data.map((value) => value * factor)
}

/** Values of a matrix (rows, columns) as (columns, rows). */
export function transposed(data: Float32Array, rows: number, columns: number): Float32Array {
  const out = new Float32Array(data.length)
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) out[c * rows + r] = data[r * columns + c] ?? 0
  }
  return out
}

/** A checkpoint of these tensors with seeded random values. */
export function randomCheckpoint(tensors: readonly CheckpointTensor[], seed: number): WeightSource {
  const made = tensors.map(({ name, dims, init }, i) => {
    const [centre, spread] = init === 'gain' ? [1, 100] : [0, init.spread]
    return [name, randomTensor(dims, seed + i, centre, spread)] as const
  })
  return sourceOf(new Map(made))
}

/** Values around `centre`, uniform with variance 1/spread. */
export function randomTensor(
  dims: readonly number[],
  seed: number,
  centre: number,
  spread: number,
): MadeTensor {
  const width = widthOf(dims)
  // Uniform on [-a, a] has variance a²/3.
  const a = Math.sqrt(3 / spread)
  const readRows = (start: number, end: number) => {
    const random = createRandom(seed, start * width)
    const data = new Float32Array((end - start) * width)
    for (let i = 0; i < data.length; i++) data[i] = centre + a * (2 * random() - 1)
    return data
  }
  return { dims, read: () => readRows(0, dims[0] ?? 1), readRows }
}

/** A tensor that is made when it is asked for, as a whole or in rows. */
export type MadeTensor = {
  readonly dims: readonly number[]
  readonly read: () => Float32Array
  readonly readRows?: (start: number, end: number) => Float32Array
}

export function sourceOf(tensors: ReadonlyMap<string, MadeTensor>): WeightSource {
  const tensorOf = (name: string) => {
    const found = tensors.get(name)
    if (found === undefined) throw new Error(`no tensor named ${name}`)
    return found
  }
  return {
    names: [...tensors.keys()],
    dims: (name) => tensorOf(name).dims,
    read: (name) => tensorOf(name).read(),
    readRows(name, start, end) {
      const { dims, read, readRows } = tensorOf(name)
      if (readRows !== undefined) return readRows(start, end)
      return read().subarray(start * widthOf(dims), end * widthOf(dims))
    },
  }
}

/** Every tensor of such a source, read in chunks. */
export function tensorsOf(source: WeightSource): Map<string, Tensor> {
  return new Map(source.names.map((name) => [name, tensorOf(source, name)]))
}

/** A tensor of the weight file, read in chunks when it is written. */
export function tensorOf(source: WeightSource, name: string): Tensor {
  return {
    dims: source.dims(name),
    *chunks() {
      for (const { data } of rowChunks(source, name)) yield data
    },
  }
}

/** Values from which on a tensor is a table of embeddings, whose rounding is one of the input. */
const TABLE_VALUES = 2 ** 22

/** The same weights to 8 significant bits, nearest even; big tables as they are. */
export function roundedToBf16(source: WeightSource): WeightSource {
  const rounded = (values: Float32Array, name: string) => {
    const [rows = 1, ...others] = source.dims(name)
    if (others.reduce((product, dim) => product * dim, rows) >= TABLE_VALUES) return values
    return new Float32Array(fromBf16(toBf16(values)).buffer)
  }
  return {
    names: source.names,
    dims: (name) => source.dims(name),
    read: (name) => rounded(source.read(name), name),
    readRows: (name, start, end) => rounded(rowsOf(source, name, start, end), name),
  }
}
