import type { FunctionProto } from 'onnx-buf'
import type { ConfigOf } from '../../config.js'
import { embeddingLayout } from '../../schemes.js'
import type { FunctionShape } from '../functions.js'
import { type Tokens, taskHead } from '../layer.js'
import type { GraphBuilder } from '../onnx.js'
import { randomWeights } from '../random.js'
import {
  embedActions,
  embedItems,
  hstuEmbedItems,
  hstuEmbedRequest,
  hstuEmbedTokens,
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
      request: (g, { rows, actions, candidates }, shape) => {
        if (!isFused(g, shape)) {
          const ofHistory = embedTokens(g, rows, actions, slots, shape)
          return [ofHistory, embedCandidates(g, candidates, slots, shape)]
        }
        const inputs = [g.weight(TABLE), rows, g.weight('action'), actions, candidates]
        const [x, y = { x: '' }] = embedded(g, hstuEmbedRequest(slots, shape), inputs, shape)
        return [x, y]
      },
      head: (g, y, _inputs, shape) => taskHead(g, y, shape),
    },
  }
}

/** ([users,] tokens, slots) rows -> (tokens, [users,] D) */
function embedCandidates(
  g: GraphBuilder,
  rows: string,
  slots: number,
  shape: FunctionShape,
): Tokens {
  if (isFused(g, shape)) {
    const [y] = embedded(g, hstuEmbedItems(slots, shape), [g.weight(TABLE), rows], shape)
    return y
  }
  return { x: embedItems(g, gatherFor(g, shape), tokensFirst(g, rows, 2, shape), slots) }
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
): Tokens {
  const table = g.weight(TABLE)
  const action = g.weight('action')
  if (isFused(g, shape)) {
    const [x] = embedded(g, hstuEmbedTokens(slots, shape), [table, rows, action, masks], shape)
    return x
  }
  const ids = tokensFirst(g, rows, 2, shape)
  const actions = embedActions(g, tokensFirst(g, masks, 1, shape), action, shape)
  return { x: embedItems(g, gatherFor(g, shape), ids, slots, actions) }
}

/** Calls one of the embedding functions: rows, and their norm by the first layer where it is affine. */
function embedded(
  g: GraphBuilder,
  body: FunctionProto,
  inputs: readonly string[],
  { config, block }: FunctionShape,
): readonly [Tokens, ...Tokens[]] {
  if (!block.normInAffine) {
    const [x = '', y] = g.callN(body, inputs)
    return [{ x }, ...(y === undefined ? [] : ([{ x: y }] as const))]
  }
  const affine = ['weight', 'bias'].map((name) => g.weight(`layers.0.norm_in.${name}`))
  const epsilon = config.layerNormEps
  const [x = '', norm = '', y, ofY = ''] = g.callN(body, [...inputs, ...affine], { epsilon })
  return [{ x, norm }, ...(y === undefined ? [] : ([{ x: y, norm: ofY }] as const))]
}
