import type { ConfigOf } from '../../config.js'
import { embeddingLayout } from '../../schemes.js'
import { FUNCTION, type FunctionShape } from '../functions.js'
import { taskHead } from '../layer.js'
import type { GraphBuilder } from '../onnx.js'
import { randomWeights } from '../random.js'
import {
  embedActions,
  embedItems,
  hstuEmbedItems,
  hstuEmbedTokens,
  hstuLogits,
  tokensFirst,
} from '../rows.js'
import { gatherTable, TABLE } from '../table.js'
import type { ExportVariant } from '../variant.js'
import { bundleTensors, checkWeights } from '../weights.js'

/** The paper's ranking model: its checkpoints are this project's own. */
export function paperVariant(config: ConfigOf<'paper'>): ExportVariant {
  const { slots, tables } = embeddingLayout(config)
  return {
    checkpoint: (source) => checkWeights(source, config),
    tensors: (source) => bundleTensors(source, config),
    random: (seed) => randomWeights(config, seed),
    table: { names: tables.map(({ name }) => `${name}.weight`), factor: Math.sqrt(config.dModel) },
    graphs: {
      history: (g, rows, masks, shape) => embedTokens(g, rows, masks, slots, shape),
      queries: (g, rows, shape) => embedCandidates(g, rows, slots, shape),
      head: (g, y, _inputs, shape) => taskHead(g, y, shape),
      functions: (shape) => ({
        history: [hstuEmbedTokens(slots, shape)],
        queries: [hstuEmbedItems(slots, shape)],
        head: [hstuLogits(shape)],
      }),
    },
  }
}

/** ([users,] tokens, slots) rows -> (tokens, [users,] D) */
function embedCandidates(
  g: GraphBuilder,
  rows: string,
  slots: number,
  shape: FunctionShape,
): string {
  if (isFused(g, shape)) return g.op('HstuEmbedItems', [g.weight(TABLE), rows], FUNCTION)
  return embedItems(g, gatherFor(g, shape), tokensFirst(g, rows, 2, shape), slots)
}

/** The functions, which kernels may replace, read a table of the type that they compute in. */
function isFused(g: GraphBuilder, { type }: FunctionShape): boolean {
  return type === 'float16' && g.weightType(TABLE) === type
}

function gatherFor(g: GraphBuilder, { type }: FunctionShape): (ids: string) => string {
  return (ids) => gatherTable(g, ids, type)
}

/** ([users,] tokens, slots) rows and ([users,] tokens) action masks -> (tokens, [users,] D) */
function embedTokens(
  g: GraphBuilder,
  rows: string,
  masks: string,
  slots: number,
  shape: FunctionShape,
): string {
  const table = g.weight(TABLE)
  const action = g.weight('action')
  if (isFused(g, shape)) {
    return g.op('HstuEmbedTokens', [table, rows, action, masks], FUNCTION)
  }
  const ids = tokensFirst(g, rows, 2, shape)
  const actions = embedActions(g, tokensFirst(g, masks, 1, shape), action, shape)
  return embedItems(g, gatherFor(g, shape), ids, slots, actions)
}
