import { Float16Array } from '@petamoriken/float16'
import { RankError } from '../errors.js'
import { rowsOf, type WeightSource, widthOf } from './checkpoint.js'
import type { NodeBuilder, TensorType } from './nodes.js'
import type { GraphBuilder } from './onnx.js'
import { castTo } from './ops.js'
import type { RowType, Tensor } from './weight-file.js'

/** The initializer that holds a bundle's embedding tables: (rows, width). */
export const TABLE = 'embedding'
/** Where that is int8: what each row is multiplied by, (rows, 1) float32. */
const SCALES = 'embedding.scale'
const MOST_INT8 = 127

/** What of a checkpoint becomes the embedding table, and what it is multiplied by on the way. */
export type TableTensors = { readonly names: readonly string[]; readonly factor: number }

/**
 * A bundle's tensors with the table as `type`. In int8 a row is round(x / s) with s = max|x| / 127, in float32:
 * the error of a number is at most s / 2.
 */
export function withStoredTable(
  tensors: ReadonlyMap<string, Tensor>,
  type: RowType,
): Map<string, Tensor> {
  const stored = new Map(tensors)
  const table = tensors.get(TABLE)
  if (table === undefined) throw new Error(`no tensor named ${TABLE}`)
  if (type !== 'int8') return stored.set(TABLE, { ...table, type })
  const { dims } = table
  const [rows = 0] = dims
  const width = widthOf(dims)
  const scales = new Float32Array(rows)
  const chunks = function* () {
    let row = 0
    for (const data of table.chunks()) {
      if (!(data instanceof Float32Array)) throw new Error('the table is integers already')
      const count = data.length / width
      yield quantize(data, width, scales.subarray(row, row + count))
      row += count
    }
  }
  stored.set(TABLE, { dims, type, chunks })
  // In file order behind the table: its scales are known when that was written.
  const of = [...stored].flatMap(([name, tensor]): [string, Tensor][] =>
    name === TABLE
      ? [
          [name, tensor],
          [SCALES, { dims: [rows, 1], type: 'float32', chunks: () => [scales] }],
        ]
      : [[name, tensor]],
  )
  return new Map(of)
}

/** Rows of `width` as int8; their scales go into `scales`. A row of zeros has scale 0. */
function quantize(data: Float32Array, width: number, scales: Float32Array): Int8Array {
  const out = new Int8Array(data.length)
  for (let row = 0; row < scales.length; row++) {
    let most = 0
    for (let i = row * width; i < (row + 1) * width; i++) {
      most = Math.max(most, Math.abs(data[i] ?? 0))
    }
    const scale = Math.fround(most / MOST_INT8)
    scales[row] = scale
    if (scale === 0) continue
    for (let i = row * width; i < (row + 1) * width; i++) {
      const value = Math.round((data[i] ?? 0) / scale)
      out[i] = Math.max(-MOST_INT8, Math.min(value, MOST_INT8))
    }
  }
  return out
}

/** Rows of `width` as they are read back. */
function rounded(data: Float32Array, width: number, type: RowType): Float32Array {
  switch (type) {
    case 'float32':
      return data
    case 'float16':
      return Float32Array.from(new Float16Array(data))
    case 'int8': {
      const scales = new Float32Array(data.length / width)
      const values = quantize(data, width, scales)
      return Float32Array.from(values, (value, i) => value * (scales[Math.floor(i / width)] ?? 0))
    }
  }
}

/**
 * A checkpoint whose table rows are what a table of `type` gives back: an oracle over it differs from graphs
 * over that table only by rounding, and from one over `source` by what the table costs.
 */
export function asStored(
  source: WeightSource,
  { names, factor }: TableTensors,
  type: RowType,
): WeightSource {
  const tables = new Set(names)
  const readRows = (name: string, start: number, end: number) => {
    const data = rowsOf(source, name, start, end)
    if (!tables.has(name)) return data
    const scaled = data.map((value) => value * factor)
    return rounded(scaled, widthOf(source.dims(name)), type).map((value) => value / factor)
  }
  return {
    names: source.names,
    dims: (name) => source.dims(name),
    read: (name) =>
      tables.has(name) ? readRows(name, 0, source.dims(name)[0] ?? 0) : source.read(name),
    readRows,
  }
}

/** Rows of the embedding table: ids (…) -> (…, width) as `type`, whatever the table is stored as. */
export function gatherTable(g: GraphBuilder, ids: string, type: TensorType): string {
  const values = g.op('Gather', [g.weight(TABLE), ids])
  if (g.weightType(TABLE) !== 'int8') return castTo(g, values, type, g.weightType(TABLE))
  return decodeTable(g, values, g.op('Gather', [g.weight(SCALES), ids]), type)
}

/** int8 (…, width) and their scales (…, 1) float32 -> (…, width) as `type`. */
export function decodeTable(
  g: NodeBuilder,
  values: string,
  scales: string,
  type: TensorType,
): string {
  const product = g.op('Mul', [castTo(g, values, 'float32', 'int8'), scales])
  return castTo(g, product, type, 'float32')
}

/** @throws {RankError} INVALID_REQUEST where a table would be wider than what is computed with it */
export function parseTable(value: string, precision: 'fp32' | 'fp16'): TableType {
  if (value === 'int8' || value === 'fp16') return value
  if (value === 'fp32' && precision === 'fp32') return value
  const known = precision === 'fp32' ? 'fp32, fp16 or int8' : 'fp16 or int8'
  throw new RankError('INVALID_REQUEST', `--table must be ${known} in ${precision}, got ${value}`)
}

export type TableType = 'fp32' | 'fp16' | 'int8'

export const STORED_AS = { fp32: 'float32', fp16: 'float16', int8: 'int8' } as const
