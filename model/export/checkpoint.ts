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
  }
}

/** @throws {RankError} WEIGHTS_INVALID at a value that is not finite */
export function readFinite(source: WeightSource, name: string): Float32Array {
  const data = source.read(name)
  const bad = data.findIndex((value) => !Number.isFinite(value))
  if (bad !== -1) {
    throw new RankError(
      'WEIGHTS_INVALID',
      `tensor ${name} must be finite, got ${data[bad]} at ${bad}`,
    )
  }
  return data
}

/** The one embedding table is built in memory: 8 GiB of float32. */
const MAX_TABLE_ELEMENTS = 2 ** 31

/** @throws {RankError} WEIGHTS_INVALID when the tables are too large */
export function emptyTable({ rows }: EmbeddingLayout, width: number): Float32Array {
  if (rows * width <= MAX_TABLE_ELEMENTS) return new Float32Array(rows * width)
  throw new RankError(
    'WEIGHTS_INVALID',
    `embedding tables must hold at most ${MAX_TABLE_ELEMENTS} numbers, got ${rows} rows of ${width}`,
  )
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
    const read = () => {
      const random = createRandom(seed + i)
      const [centre, spread] = init === 'gain' ? [1, 100] : [0, init.spread]
      // Uniform on [-a, a] has variance a²/3.
      const a = Math.sqrt(3 / spread)
      const size = dims.reduce((product, dim) => product * dim, 1)
      return Float32Array.from({ length: size }, () => centre + a * (2 * random() - 1))
    }
    return [name, { dims, read }] as const
  })
  return sourceOf(new Map(made))
}

/** A tensor that is made when it is asked for. */
export type MadeTensor = { readonly dims: readonly number[]; readonly read: () => Float32Array }

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
  }
}

/** Every tensor of such a source, read one at a time. */
export function tensorsOf(source: WeightSource): Map<string, Tensor> {
  return new Map(
    source.names.map((name) => [name, { dims: source.dims(name), data: readFinite(source, name) }]),
  )
}

/** Values from which on a tensor is a table of embeddings, whose rounding is one of the input. */
const TABLE_VALUES = 2 ** 22

/** The same weights to 8 significant bits, nearest even; big tables as they are. */
export function roundedToBf16(source: WeightSource): WeightSource {
  return {
    names: source.names,
    dims: (name) => source.dims(name),
    read(name) {
      const values = source.read(name)
      if (values.length >= TABLE_VALUES) return values
      const bits = new Uint32Array(values.slice().buffer)
      const rounded = bits.map((x) => (x + 0x7fff + ((x >>> 16) & 1)) & 0xffff0000)
      return new Float32Array(rounded.buffer)
    },
  }
}
