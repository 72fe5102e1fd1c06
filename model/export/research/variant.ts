import type { ConfigOf } from '../../config.js'
import { SLOT } from '../../research/tokens.js'
import { tensorsOf } from '../checkpoint.js'
import type { FunctionShape } from '../functions.js'
import { sumOf } from '../layer.js'
import type { GraphBuilder } from '../onnx.js'
import { castTo } from '../ops.js'
import { embedItems, tokensFirst } from '../rows.js'
import { gatherTable, TABLE } from '../table.js'
import type { ExportVariant, GraphParts } from '../variant.js'
import { randomResearch, researchWeights } from './weights.js'

/** The next-item model of the public research code. */
export function researchVariant(config: ConfigOf<'research'>): ExportVariant {
  return {
    checkpoint: (source) => researchWeights(source, config),
    tensors: tensorsOf,
    random: (seed) => researchWeights(randomResearch(config, seed), config),
    table: { names: [TABLE], factor: 1 },
    graphs: graphParts(config),
  }
}

function graphParts(config: ConfigOf<'research'>): GraphParts {
  // Item and position, both rows of the one table; padding's are zero rows.
  const embed = (g: GraphBuilder, rows: string, { type }: FunctionShape) =>
    embedItems(g, (ids) => gatherTable(g, ids, type), rows, SLOT.position + 1)
  const secondsToNext = (g: GraphBuilder, rows: string) =>
    g.op('Gather', [rows, g.scalar(SLOT.secondsToNext, 'int64')], { attributes: { axis: -1n } })
  const eps = config.stated.outputNormEps ?? 1e-6
  // Items are stored times sqrt(D), which their norm takes out again.
  const itemNormEps = eps * Math.sqrt(config.dModel)
  const user: NonNullable<GraphParts['user']> = (g, y, shape) =>
    normalized(g, castTo(g, sumOf(g, y), 'float32', shape.type), eps)
  return {
    history: (g, rows, _, shape) => ({ x: embed(g, tokensFirst(g, rows, 2, shape), shape) }),
    queries: (g, rows, shape) => ({
      x: embed(g, firstAlong(g, tokensFirst(g, rows, 2, shape), 0), shape),
    }),
    user,
    itemNormEps,
    head(g, y, { rows }, shape) {
      const own = tokensFirst(g, rows, 2, shape)
      const ids = g.op('Gather', [own, g.scalar(SLOT.candidate, 'int64')], {
        attributes: { axis: -1n },
      })
      const items = gatherTable(g, ids, 'float32')
      const scaled = normalized(g, items, itemNormEps)
      const similarity = g.op('ReduceSum', [g.op('Mul', [user(g, y, shape), scaled]), g.ints([-1])])
      return tokensFirst(g, similarity, 2, shape)
    },
    next: {
      ofHistory: (g, times, rows) =>
        g.op('Add', [times, castTo(g, secondsToNext(g, rows), 'int64')]),
      ofQueries: (g, rows, { batched }) =>
        castTo(g, secondsToNext(g, firstAlong(g, rows, batched ? 1 : 0)), 'float64'),
    },
  }
}

/** The first along an axis, which stays: all candidates' rows begin with the same event of the user. */
function firstAlong(g: GraphBuilder, rows: string, axis: number): string {
  return g.op('Slice', [rows, g.ints([0]), g.ints([1]), g.ints([axis])])
}

/** x / max(‖x‖, eps) along the last axis. */
function normalized(g: GraphBuilder, x: string, eps: number): string {
  const norm = g.op('ReduceL2', [x, g.ints([-1])])
  return g.op('Div', [x, g.op('Max', [norm, g.scalar(eps, 'float32')])])
}
