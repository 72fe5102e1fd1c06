import type { ConfigOf } from '../../config.js'
import { embeddingLayout } from '../../schemes.js'
import { FUNCTION, type FunctionShape } from '../functions.js'
import { taskHead } from '../layer.js'
import type { GraphBuilder } from '../onnx.js'
import { randomWeights } from '../random.js'
import { embedActions, embedItems, hstuEmbedItems, hstuEmbedTokens } from '../rows.js'
import type { ExportVariant } from '../variant.js'
import { bundleTensors, checkWeights } from '../weights.js'

/** The paper's ranking model: its checkpoints are this project's own. */
export function paperVariant(config: ConfigOf<'paper'>): ExportVariant {
  const { slots } = embeddingLayout(config)
  return {
    checkpoint: (source) => checkWeights(source, config),
    tensors: (source) => bundleTensors(source, config),
    random: (seed) => randomWeights(config, seed),
    graphs: {
      history: (g, rows, masks, shape) => embedTokens(g, rows, masks, slots, shape),
      queries: (g, rows, shape) => embedCandidates(g, rows, slots, shape),
      head: (g, y, _inputs, shape) => taskHead(g, y, shape),
      functions: (shape) => ({
        history: [hstuEmbedTokens(slots, shape)],
        queries: [hstuEmbedItems(slots)],
      }),
    },
  }
}

/** (…, slots) rows -> (…, D) */
function embedCandidates(
  g: GraphBuilder,
  rows: string,
  slots: number,
  { type }: FunctionShape,
): string {
  const inputs = [g.weight('embedding'), rows] as const
  if (type === 'float16') return g.op('HstuEmbedItems', inputs, FUNCTION)
  return embedItems(g, ...inputs, slots)
}

/** (…, slots) rows and (…) action masks -> (…, D) */
function embedTokens(
  g: GraphBuilder,
  rows: string,
  masks: string,
  slots: number,
  shape: FunctionShape,
): string {
  const inputs = [g.weight('embedding'), rows] as const
  const action = g.weight('action')
  if (shape.type === 'float16') {
    return g.op('HstuEmbedTokens', [...inputs, action, masks], FUNCTION)
  }
  return embedItems(g, ...inputs, slots, embedActions(g, masks, action, shape))
}
