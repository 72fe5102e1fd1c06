import type { ConfigOf } from '../../config.js'
import { embeddingLayout } from '../../schemes.js'
import {
  type CheckpointTensor,
  checkTensors,
  type MadeTensor,
  randomCheckpoint,
  readFinite,
  sourceOf,
  tableOf,
  transposed,
  type WeightSource,
  withoutPrefix,
} from '../checkpoint.js'

const ITEMS = '_embedding_module._item_emb.weight'
const POSITIONS = '_input_features_preproc._pos_emb.weight'

/** The causal mask, a buffer. */
const isIgnored = (name: string) => name === '_attn_mask'

function layerName(layer: number, name: string): string {
  return `_hstu._attention_layers.${layer}.${name}`
}

/** Every parameter of upstream's state dict, without a `module.` before the names. */
function researchTensors(config: ConfigOf<'research'>): CheckpointTensor[] {
  const { dModel: d, heads, dqk, dv, layers, stated, positions } = config
  const bias = { spread: 100 }
  const ofLayers = Array.from({ length: layers }, (_, i): CheckpointTensor[] => [
    { name: layerName(i, '_uvqk'), dims: [d, 2 * heads * (dqk + dv)], init: { spread: d } },
    { name: layerName(i, '_rel_attn_bias._ts_w'), dims: [config.timeBuckets], init: bias },
    { name: layerName(i, '_rel_attn_bias._pos_w'), dims: [2 * positions - 1], init: bias },
    { name: layerName(i, '_o.weight'), dims: [d, heads * dv], init: { spread: heads * dv } },
    { name: layerName(i, '_o.bias'), dims: [d], init: bias },
  ])
  return [
    { name: ITEMS, dims: [stated.items + 1, d], init: { spread: d } },
    { name: POSITIONS, dims: [positions, d], init: { spread: d } },
    ...ofLayers.flat(),
  ]
}

export function randomResearch(config: ConfigOf<'research'>, seed: number): WeightSource {
  return randomCheckpoint(researchTensors(config), seed)
}

/**
 * Upstream's state dict as graphs and oracle read it: items, times sqrt(D) and without the padding's row,
 * and positions in one table; matrices (in, out); position weights by distance into the past.
 * @throws {RankError} WEIGHTS_INVALID naming the tensor that does not fit
 */
export function researchWeights(
  checkpoint: WeightSource,
  config: ConfigOf<'research'>,
): WeightSource {
  const source = withoutPrefix(checkpoint, isIgnored)
  const tensors = researchTensors(config)
  checkTensors(source, new Map(tensors.map(({ name, dims }) => [name, dims])))
  const { dModel: d, heads, dqk, dv, positions } = config
  const layout = embeddingLayout(config)
  const [items, places] = layout.tables
  const made = new Map<string, MadeTensor>()
  const make = (name: string, dims: readonly number[], read: () => Float32Array) =>
    made.set(name, { dims, read })
  const parts = [
    { name: ITEMS, at: (items?.offset ?? 0) + 1, skip: 1, factor: Math.sqrt(d) },
    { name: POSITIONS, at: places?.offset ?? 0 },
  ]
  made.set('embedding', tableOf(source, parts, layout, d))
  for (let i = 0; i < config.layers; i++) {
    const read = (name: string) => readFinite(source, layerName(i, name))
    const prefix = `layers.${i}`
    make(`${prefix}.uvqk.weight`, [d, 2 * heads * (dqk + dv)], () => read('_uvqk'))
    make(`${prefix}.out.weight`, [heads * dv, d], () =>
      transposed(read('_o.weight'), d, heads * dv),
    )
    make(`${prefix}.out.bias`, [d], () => read('_o.bias'))
    // Upstream's index is (j - i) + N - 1: what lies in the future is never read.
    make(`${prefix}.pos_w`, [positions], () =>
      read('_rel_attn_bias._pos_w').slice(0, positions).reverse(),
    )
    make(`${prefix}.time_w`, [config.timeBuckets], () => read('_rel_attn_bias._ts_w'))
  }
  return sourceOf(made)
}
