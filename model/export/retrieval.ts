import type { RetrievalGraphName } from '../manifest.js'
import type { CandidateList } from '../retrieval.js'
import { rowChunks, type WeightSource, widthOf } from './checkpoint.js'
import { type GraphOptions, queryRows, scoreFunctions, shapeOf } from './graphs.js'
import { type OnnxGraph, onnxGraph } from './onnx.js'
import { castTo } from './ops.js'
import { gatherTable, TABLE } from './table.js'
import type { Tensor } from './weight-file.js'

/** Rows of the candidate list in the embedding table, and one over the norm of each: (items, 1). */
const ROWS = 'retrieval.rows'
const INVERSE_NORMS = 'retrieval.inverse_norms'
/** Of the list, written at a time. */
const CHUNK_ITEMS = 2 ** 20

/** The two graphs of a retrieval head; undefined for a variant without one. */
export function buildRetrieval(
  options: GraphOptions,
): Record<RetrievalGraphName, OnnxGraph> | undefined {
  return options.parts.user === undefined
    ? undefined
    : { encode: buildEncode(options, options.parts.user), retrieve: buildRetrieve(options) }
}

/**
 * The user at the end of a history, against its cached K and V: rows (1, slots) int32 and the rest as the
 * graph `score` has them -> user (1, D) float32, of length 1.
 */
function buildEncode(
  options: GraphOptions,
  user: NonNullable<GraphOptions['parts']['user']>,
): OnnxGraph {
  const { weights, config } = options
  return onnxGraph('encode', weights, scoreFunctions(options), (g) => {
    const { x } = queryRows(g, options, 1)
    g.output('user', user(g, x, shapeOf(options, false)), 'float32', [1, config.dModel])
  })
}

/**
 * The best of `count` items from place `from` of the candidate list on: user (1, D) float32, from (1),
 * count (1), excluded (x) places in `[0, count)` and k (1) int64 -> scores (k) float32, best first, and
 * places (k) int64 in the list; of equal scores the first place comes first. Excluded items score -infinity.
 */
function buildRetrieve({ weights, config }: GraphOptions): OnnxGraph {
  return onnxGraph('retrieve', weights, [], (g) => {
    const user = g.input('user', 'float32', [1, config.dModel])
    const from = g.input('from', 'int64', [1])
    const count = g.input('count', 'int64', [1])
    const excluded = g.input('excluded', 'int64', ['x'])
    const k = g.input('k', 'int64', [1])
    const end = g.op('Add', [from, count])
    const chunkOf = (name: string) => g.op('Slice', [g.weight(name), from, end, g.ints([0])])
    const flat = (x: string) => g.op('Reshape', [x, g.ints([-1])])
    const items = gatherTable(g, flat(chunkOf(ROWS)), 'float32')
    // Of the products that ONNX Runtime has for it the one whose sums are the same bit for bit whatever
    // else is in the chunk, unless an item is alone: MatMul takes 12 ns an item for 17 (D = 50), with a
    // vector of rank 1 185 ns, and items with equal rows may differ by where they stand.
    const dots = g.op('Gemm', [items, user], {
      attributes: { transB: 1n },
    })
    const scores = flat(g.op('Mul', [dots, chunkOf(INVERSE_NORMS)]))
    // -infinity as often as there are excluded places: by arithmetic on them, which a GPU's session does
    // on the GPU.
    const never = g.op('Sub', [
      g.op('Mul', [castTo(g, excluded, 'float32'), g.scalar(0, 'float32')]),
      g.scalar(Number.POSITIVE_INFINITY, 'float32'),
    ])
    const masked = g.op('ScatterElements', [scores, excluded, never])
    const [best = '', places = ''] = g.opN('TopK', [masked, k], 2)
    g.output('scores', best, 'float32', ['k'])
    g.output('places', g.op('Add', [places, from]), 'int64', ['k'])
  })
}

/**
 * What the graph `retrieve` has beside the embedding table, whose items are not copied: 8 bytes for each.
 * `source` has the table as it is stored; `eps` is the least norm.
 */
export function retrievalTensors(
  list: CandidateList,
  source: WeightSource,
  eps: number,
): Map<string, Tensor> {
  const dims = [list.length, 1]
  const rowsOfList = function* () {
    for (let start = 0; start < list.length; start += CHUNK_ITEMS) {
      yield list.rows(start, Math.min(start + CHUNK_ITEMS, list.length))
    }
  }
  const inverseNormsOfList = function* () {
    const inverseNorms = inverseNormsOf(source, eps)
    for (const rows of rowsOfList()) yield Float32Array.from(rows, (row) => inverseNorms[row] ?? 0)
  }
  return new Map<string, Tensor>([
    [ROWS, { dims, type: 'int32', chunks: rowsOfList }],
    [INVERSE_NORMS, { dims, type: 'float32', chunks: inverseNormsOfList }],
  ])
}

/** Of every row of the table. */
function inverseNormsOf(source: WeightSource, eps: number): Float32Array {
  const [rows = 0] = source.dims(TABLE)
  const width = widthOf(source.dims(TABLE))
  const inverseNorms = new Float32Array(rows)
  for (const { start, data } of rowChunks(source, TABLE)) {
    for (let at = 0; at < data.length; at += width) {
      let sum = 0
      for (let i = at; i < at + width; i++) sum += (data[i] ?? 0) ** 2
      inverseNorms[start + at / width] = 1 / Math.max(Math.sqrt(sum), eps)
    }
  }
  return inverseNorms
}
