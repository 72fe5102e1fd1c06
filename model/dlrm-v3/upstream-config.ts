import Type from 'typebox'
import { Compile } from 'typebox/compile'
import { check, show } from '../check.js'
import { invalid } from '../config-schema.js'

const Names = Type.Array(Type.String())
const Lengths = Type.Record(Type.String(), Type.Integer({ minimum: 0 }))

/** The fields of `DlrmHSTUConfig` that inference reads, under their own names; others are let pass. */
const HstuConfigs = Type.Object({
  max_seq_len: Type.Optional(Type.Integer({ minimum: 1 })),
  hstu_num_heads: Type.Integer({ minimum: 1 }),
  hstu_attn_linear_dim: Type.Integer({ minimum: 1 }),
  hstu_attn_qk_dim: Type.Integer({ minimum: 1 }),
  hstu_attn_num_layers: Type.Integer({ minimum: 1 }),
  hstu_embedding_table_dim: Type.Integer({ minimum: 1 }),
  hstu_preprocessor_hidden_dim: Type.Integer({ minimum: 1 }),
  hstu_transducer_embedding_dim: Type.Integer({ minimum: 1 }),
  hstu_group_norm: Type.Optional(Type.Boolean()),
  contextual_feature_to_max_length: Lengths,
  contextual_feature_to_min_uih_length: Type.Optional(Lengths),
  multitask_configs: Type.Array(
    Type.Object({
      task_name: Type.String(),
      // MultitaskTaskType: 0 is BINARY_CLASSIFICATION, 1 is REGRESSION.
      task_type: Type.Union([Type.Literal(0), Type.Literal(1)]),
    }),
    { minItems: 1 },
  ),
  user_embedding_feature_names: Names,
  item_embedding_feature_names: Type.Array(Type.String(), { minItems: 1 }),
  uih_post_id_feature_name: Type.String(),
  merge_uih_candidate_feature_mapping: Type.Array(Type.Tuple([Type.String(), Type.String()])),
  action_weights: Type.Array(Type.Integer({ minimum: 1 }), { minItems: 1 }),
  enable_postprocessor: Type.Optional(Type.Boolean()),
  use_layer_norm_postprocessor: Type.Optional(Type.Boolean()),
})

const Upstream = Type.Object(
  {
    variant: Type.Literal('dlrm-v3'),
    name: Type.Optional(Type.String()),
    hstuConfigs: HstuConfigs,
    // `get_embedding_table_config()`: what each EmbeddingConfig says of its size and features.
    embeddingTables: Type.Record(
      Type.String(),
      Type.Object({
        num_embeddings: Type.Integer({ minimum: 1 }),
        feature_names: Names,
      }),
    ),
    divisor: Type.Integer({ minimum: 1 }),
    timeBucketClamp: Type.Optional(Type.String()),
    maxTokens: Type.Optional(Type.Integer({ minimum: 1 })),
    actions: Type.Optional(Names),
    catalogue: Type.Optional(Type.String()),
    weights: Type.Optional(Type.Record(Type.String(), Type.Number())),
  },
  { additionalProperties: false },
)

const compiled = Compile(Upstream)

/** Widths and rows that upstream's DlrmHSTU has in its code, not in its config. */
const IN_CODE = {
  itemHidden: 512,
  headHidden: 512,
  actionDim: 8,
  positionRows: 8192,
  timeRows: 2049,
}

export function isUpstream(value: unknown): boolean {
  return typeof value === 'object' && value !== null && Object.hasOwn(value, 'hstuConfigs')
}

/**
 * The config that a JSON of upstream's `DlrmHSTUConfig` and embedding tables means. Item features are
 * called as in the history (`uih`) features.
 * @throws {RankError} CONFIG_INVALID with the JSON pointer of what is missing or not supported
 */
export function fromHstuConfigs(value: unknown): object {
  const {
    hstuConfigs: hstu,
    embeddingTables,
    ...own
  } = check(compiled, value, 'CONFIG_INVALID', 'config')
  const refuse = (field: string, message: string) => invalid(`/hstuConfigs/${field}`, message)
  if (hstu.hstu_group_norm === true) throw refuse('hstu_group_norm', 'must be false')
  if (hstu.enable_postprocessor === false) throw refuse('enable_postprocessor', 'must be true')
  if (hstu.use_layer_norm_postprocessor === true)
    throw refuse('use_layer_norm_postprocessor', 'must be false')
  for (const [name, length] of Object.entries(hstu.contextual_feature_to_max_length)) {
    if (length !== 1)
      throw refuse(`contextual_feature_to_max_length/${name}`, `must be 1, got ${length}`)
  }
  const historyNameOf = new Map(
    hstu.merge_uih_candidate_feature_mapping.map(([history, candidate]) => [candidate, history]),
  )
  const itemTower = hstu.item_embedding_feature_names.map((name, i) => {
    const history = historyNameOf.get(name)
    if (history !== undefined) return history
    throw refuse(
      `item_embedding_feature_names/${i}`,
      `must be mapped to a history feature by merge_uih_candidate_feature_mapping, got ${show(name)}`,
    )
  })
  const itemFeature = hstu.uih_post_id_feature_name
  if (!itemTower.includes(itemFeature)) {
    throw refuse(
      'uih_post_id_feature_name',
      `must be one of the item's features ${show(itemTower)}, got ${show(itemFeature)}`,
    )
  }
  const extraItemFeatures = hstu.merge_uih_candidate_feature_mapping
    .filter(
      ([history, candidate]) =>
        hstu.item_embedding_feature_names.includes(candidate) &&
        hstu.user_embedding_feature_names.includes(history) &&
        history !== itemFeature,
    )
    .map(([history]) => history)
  const context = Object.keys(hstu.contextual_feature_to_max_length).map((name) => ({
    name,
    minHistory: hstu.contextual_feature_to_min_uih_length?.[name] ?? 0,
  }))
  const used = [itemFeature, ...extraItemFeatures, ...context.map(({ name }) => name)]
  const tables = Object.entries(embeddingTables)
  const features = used.map((name) => {
    const found = tables.find(([, table]) => table.feature_names.includes(name))
    if (found === undefined) {
      throw invalid('/embeddingTables', `must have a table for feature ${show(name)}`)
    }
    const [table, { num_embeddings: rows }] = found
    return { name, table, rows }
  })
  return {
    ...own,
    dModel: hstu.hstu_transducer_embedding_dim,
    heads: hstu.hstu_num_heads,
    dqk: hstu.hstu_attn_qk_dim,
    dv: hstu.hstu_attn_linear_dim,
    layers: hstu.hstu_attn_num_layers,
    tableDim: hstu.hstu_embedding_table_dim,
    preprocessorHidden: hstu.hstu_preprocessor_hidden_dim,
    ...IN_CODE,
    itemFeature,
    extraItemFeatures,
    itemTower,
    context,
    features,
    actionWeights: hstu.action_weights,
    tasks: hstu.multitask_configs.map(({ task_name: name, task_type: type }) => ({
      name,
      type: type === 0 ? 'binary' : 'regression',
    })),
  }
}
