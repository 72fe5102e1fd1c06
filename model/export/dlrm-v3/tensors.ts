import type { ConfigOf } from '../../config.js'
import { type CheckpointTensor, randomCheckpoint, type WeightSource } from '../checkpoint.js'

const PREPROCESSOR = '_hstu_transducer._input_preprocessor'
const ENCODER = `${PREPROCESSOR}._action_encoder`
const POSITIONS = '_hstu_transducer._positional_encoder'
const POSTPROCESSOR = '_hstu_transducer._output_postprocessor'

/** Upstream's names of what is no multi-layer perceptron. */
export const NAMES = {
  position: `${POSITIONS}._position_embeddings_weight`,
  time: `${POSITIONS}._timestamp_embeddings_weight`,
  contextWeight: `${PREPROCESSOR}._batched_contextual_linear_weights`,
  contextBias: `${PREPROCESSOR}._batched_contextual_linear_bias`,
  actionTable: `${ENCODER}._action_embedding_table`,
  targetAction: `${ENCODER}._target_action_embedding_table`,
  combinerWeight: `${POSTPROCESSOR}._time_feature_combiner.weight`,
  combinerBias: `${POSTPROCESSOR}._time_feature_combiner.bias`,
  postNormWeight: `${POSTPROCESSOR}._layer_norm.weight`,
  postNormBias: `${POSTPROCESSOR}._layer_norm.bias`,
  layer: (i: number) => `_hstu_transducer._stu_module._stu_layers.${i}`,
  actionWeights: `${ENCODER}._combined_action_weights`,
  periodUnits: `${POSTPROCESSOR}._period_units`,
  unitsPerPeriod: `${POSTPROCESSOR}._units_per_period`,
}

/** Ours and upstream's: linear, SiLU by its own norm, linear, and all but the head a norm. */
export const MLPS = {
  content: `${PREPROCESSOR}._content_embedding_mlp`,
  extra: `${PREPROCESSOR}._additional_embedding_mlp`,
  action: `${PREPROCESSOR}._action_embedding_mlp`,
  item: '_item_embedding_mlp',
  head: '_multitask_module._prediction_module',
} as const

/** What the postprocessor knows of the query time: hour of the day, day of the week. */
export const PERIODS = [
  { seconds: 3600, count: 24 },
  { seconds: 86_400, count: 7 },
] as const

export function tableName(table: string): string {
  return `_embedding_collection.embeddings.${table}.weight`
}

/** Every parameter that inference reads, under its name in upstream's state dict. */
export function dlrmTensors(config: ConfigOf<'dlrm-v3'>): CheckpointTensor[] {
  const { stated, dModel: d, heads, dqk, dv } = config
  const { tableDim, preprocessorHidden, itemHidden, actionDim, actionWeights } = stated
  const slots = config.context.length
  const extras = stated.extraItemFeatures.length
  const actionWidth = actionWeights.length * actionDim
  const tables = new Map(stated.features.map(({ table, rows }) => [table, rows]))
  const used = new Set([...config.itemFeatures, ...config.context].map(({ table }) => table))
  const contextWeights: CheckpointTensor[] = [
    { name: NAMES.contextWeight, dims: [slots, tableDim, d], init: { spread: tableDim } },
    { name: NAMES.contextBias, dims: [slots, d], init: BIAS },
  ]
  const extra = mlp(MLPS.extra, extras * tableDim, preprocessorHidden, d)
  return [
    ...[...tables]
      .filter(([table]) => used.has(table))
      .map(
        ([table, rows]): CheckpointTensor => ({
          name: tableName(table),
          dims: [rows, tableDim],
          init: { spread: 3 },
        }),
      ),
    { name: NAMES.position, dims: [stated.positionRows, d], init: { spread: d } },
    { name: NAMES.time, dims: [stated.timeRows, d], init: { spread: d } },
    ...(slots > 0 ? contextWeights : []),
    ...mlp(MLPS.content, tableDim, preprocessorHidden, d),
    ...(extras > 0 ? extra : []),
    { name: NAMES.actionTable, dims: [actionWeights.length, actionDim], init: { spread: 3 } },
    { name: NAMES.targetAction, dims: [1, actionWidth], init: { spread: 3 } },
    ...mlp(MLPS.action, actionWidth, preprocessorHidden, d),
    ...Array.from({ length: config.layers }, (_, i) =>
      layer(NAMES.layer(i), { d, uvqk: 2 * heads * (dqk + dv), attended: heads * dv }),
    ).flat(),
    { name: NAMES.combinerWeight, dims: [d, d + 4], init: { spread: d } },
    { name: NAMES.combinerBias, dims: [d], init: BIAS },
    { name: NAMES.postNormWeight, dims: [d], init: 'gain' },
    { name: NAMES.postNormBias, dims: [d], init: BIAS },
    ...mlp(MLPS.item, config.itemFeatures.length * tableDim, itemHidden, d),
    ...mlp(MLPS.head, d, stated.headHidden, config.tasks.length).slice(0, -2),
  ]
}

const BIAS = { spread: 100 } as const

function mlp(name: string, inputs: number, hidden: number, outputs: number): CheckpointTensor[] {
  return [
    { name: `${name}.0.weight`, dims: [hidden, inputs], init: { spread: inputs } },
    { name: `${name}.0.bias`, dims: [hidden], init: BIAS },
    { name: `${name}.1.weight`, dims: [hidden], init: 'gain' },
    { name: `${name}.1.bias`, dims: [hidden], init: BIAS },
    { name: `${name}.2.weight`, dims: [outputs, hidden], init: { spread: hidden } },
    { name: `${name}.2.bias`, dims: [outputs], init: BIAS },
    { name: `${name}.3.weight`, dims: [outputs], init: 'gain' },
    { name: `${name}.3.bias`, dims: [outputs], init: BIAS },
  ]
}

function layer(
  name: string,
  { d, uvqk, attended }: { readonly d: number; readonly uvqk: number; readonly attended: number },
): CheckpointTensor[] {
  return [
    { name: `${name}._uvqk_weight`, dims: [d, uvqk], init: { spread: d } },
    { name: `${name}._uvqk_beta`, dims: [uvqk], init: BIAS },
    { name: `${name}._input_norm_weight`, dims: [d], init: 'gain' },
    { name: `${name}._input_norm_bias`, dims: [d], init: BIAS },
    { name: `${name}._output_weight`, dims: [3 * attended, d], init: { spread: 3 * attended } },
    { name: `${name}._output_norm_weight`, dims: [attended], init: 'gain' },
    { name: `${name}._output_norm_bias`, dims: [attended], init: BIAS },
  ]
}

export function randomDlrm(config: ConfigOf<'dlrm-v3'>, seed: number): WeightSource {
  return randomCheckpoint(dlrmTensors(config), seed)
}
