import { type HstuConfig, parseConfig } from '../config.js'
import { randomTensor, sourceOf, type WeightSource } from './checkpoint.js'
import { weightShapes } from './weights.js'

/** The shape of a model with random weights; the defaults are the ranking model of the HSTU paper. */
export type RandomShape = {
  readonly layers: number
  readonly dModel: number
  readonly heads: number
  readonly maxTokens: number
  /** Rows of the item id table, the unknown one included. */
  readonly items: number
}

/** Section 4.2 of the paper: 3 layers, width 512, 2,048 tokens. */
export const PAPER_SHAPE: RandomShape = {
  layers: 3,
  dModel: 512,
  heads: 8,
  maxTokens: 2048,
  items: 10_001,
}

/**
 * A config of the given shape, with raw rows as ids.
 * @throws {RankError} CONFIG_INVALID when the shape is out of range
 */
export function randomConfig({ layers, dModel, heads, maxTokens, items }: RandomShape): HstuConfig {
  const headDim = dModel / heads
  return parseConfig({
    variant: 'paper',
    name: `random-l${layers}-d${dModel}-h${heads}-n${maxTokens}`,
    dModel,
    heads,
    dqk: headDim,
    dv: headDim,
    layers,
    maxTokens,
    positions: maxTokens,
    timeBuckets: 128,
    headHidden: dModel,
    layerNormEps: 1e-6,
    context: [{ name: 'country', rows: 64 }],
    itemFeatures: [
      { name: 'id', rows: items },
      { name: 'author', rows: 1025 },
      { name: 'tag', rows: 65 },
    ],
    actions: ['click', 'like', 'share', 'unobserved'],
    unobservedAction: 'unobserved',
    auxiliary: [],
    tasks: [
      { name: 'click', type: 'binary' },
      { name: 'like', type: 'binary' },
    ],
  })
}

/** Seeded weights: matrices and tables uniform with variance 1/width, norms near identity, biases small. */
export function randomWeights(config: HstuConfig, seed: number): WeightSource {
  const shapes = weightShapes(config)
  const names = [...shapes.keys()]
  const made = names.map((name, i) => {
    const dims = shapes.get(name) ?? []
    const isMatrix = /(uvqk|out|fc1|fc2)\.weight$/.test(name)
    const isTable = /^(ctx|item|aux|action)/.test(name)
    const width = isMatrix ? (dims[0] ?? 1) : isTable ? config.dModel : 100
    const centre = /norm(_in|_attn)?\.weight$/.test(name) ? 1 : 0
    return [name, randomTensor(dims, seed + i, centre, width)] as const
  })
  return sourceOf(new Map(made))
}
