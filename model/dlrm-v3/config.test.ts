import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { SMALL_DLRM } from '../../test/small-checkpoints.js'
import { parseConfig, statedOf } from '../config.js'
import { RANDOM_MODELS } from '../export/random-models.js'

/** Upstream's names for a kuairand-like model, as JSON of the dataclass has them. */
const UPSTREAM = {
  variant: 'dlrm-v3',
  name: 'mirrored',
  divisor: 500,
  maxTokens: 200,
  actions: ['click', 'like'],
  hstuConfigs: {
    max_seq_len: 16384,
    max_num_candidates: 10,
    hstu_num_heads: 4,
    hstu_attn_linear_dim: 32,
    hstu_attn_qk_dim: 16,
    hstu_attn_num_layers: 5,
    hstu_embedding_table_dim: 24,
    hstu_preprocessor_hidden_dim: 256,
    hstu_transducer_embedding_dim: 64,
    hstu_group_norm: false,
    hstu_input_dropout_ratio: 0.2,
    contextual_feature_to_max_length: { user_id: 1, city: 1 },
    contextual_feature_to_min_uih_length: { user_id: 20 },
    multitask_configs: [
      { task_name: 'is_click', task_weight: 1, task_type: 0 },
      { task_name: 'seconds', task_weight: 1, task_type: 1 },
    ],
    user_embedding_feature_names: ['video', 'author', 'user_id', 'city'],
    item_embedding_feature_names: ['item_author', 'item_video'],
    uih_post_id_feature_name: 'video',
    merge_uih_candidate_feature_mapping: [
      ['video', 'item_video'],
      ['time', 'item_query_time'],
      ['author', 'item_author'],
    ],
    action_weights: [1, 2],
  },
  embeddingTables: {
    videos: { num_embeddings: 1000, feature_names: ['video', 'item_video'], embedding_dim: 24 },
    authors: { num_embeddings: 50, feature_names: ['author', 'item_author'] },
    user_id: { num_embeddings: 70, feature_names: ['user_id'] },
    city: { num_embeddings: 9, feature_names: ['city'] },
  },
}

// biome-ignore lint/suspicious/noExplicitAny: tests break JSON in ways that no type allows
type Json = any

function changed(config: object, change: (config: Json) => void): Json {
  const copy: Json = JSON.parse(JSON.stringify(config))
  change(copy)
  return copy
}

function refused(config: Json, message: RegExp): void {
  assert.throws(() => parseConfig(config), { code: 'CONFIG_INVALID', message }, String(message))
}

describe('a DlrmHSTUConfig as JSON', () => {
  test('becomes the config that upstream’s code would build', () => {
    const config = parseConfig(UPSTREAM)
    assert.deepEqual(statedOf(config), {
      variant: 'dlrm-v3',
      name: 'mirrored',
      divisor: 500,
      maxTokens: 200,
      actions: ['click', 'like'],
      dModel: 64,
      heads: 4,
      dqk: 16,
      dv: 32,
      layers: 5,
      tableDim: 24,
      preprocessorHidden: 256,
      itemHidden: 512,
      headHidden: 512,
      actionDim: 8,
      positionRows: 8192,
      timeRows: 2049,
      itemFeature: 'video',
      extraItemFeatures: ['author'],
      itemTower: ['author', 'video'],
      context: [
        { name: 'user_id', minHistory: 20 },
        { name: 'city', minHistory: 0 },
      ],
      features: [
        { name: 'video', table: 'videos', rows: 1000 },
        { name: 'author', table: 'authors', rows: 50 },
        { name: 'user_id', table: 'user_id', rows: 70 },
        { name: 'city', table: 'city', rows: 9 },
      ],
      actionWeights: [1, 2],
      tasks: [
        { name: 'is_click', type: 'binary' },
        { name: 'seconds', type: 'regression' },
      ],
    })
    // What a bundle states gives the same config again.
    assert.deepEqual(parseConfig(statedOf(config)), config)
  })

  test('is refused where this project does not compute what it asks for, or it lacks something', () => {
    const cases: readonly (readonly [(config: Json) => void, RegExp])[] = [
      [(c) => delete c.divisor, /lacks the fields: divisor/],
      [(c) => delete c.hstuConfigs.hstu_num_heads, /hstuConfigs lacks the fields: hstu_num_heads/],
      [(c) => Object.assign(c, { extra: 1 }), /unknown fields: extra/],
      [(c) => Object.assign(c.hstuConfigs, { hstu_group_norm: true }), /hstu_group_norm must be/],
      [(c) => Object.assign(c.hstuConfigs, { enable_postprocessor: false }), /must be true/],
      [(c) => Object.assign(c.hstuConfigs, { use_layer_norm_postprocessor: true }), /must be fal/],
      [(c) => Object.assign(c.hstuConfigs.contextual_feature_to_max_length, { city: 3 }), /got 3/],
      [(c) => c.hstuConfigs.item_embedding_feature_names.push('item_tag'), /"item_tag"/],
      [
        (c) => Object.assign(c.hstuConfigs, { uih_post_id_feature_name: 'time' }),
        /uih_post_id_feature_name must be one of .*got "time"/,
      ],
      [(c) => delete c.embeddingTables.authors, /must have a table for feature "author"/],
    ]
    for (const [change, message] of cases) refused(changed(UPSTREAM, change), message)
  })
})

describe('a dlrm-v3 config', () => {
  test('holds its parts to each other', () => {
    const cases: readonly (readonly [(config: Json) => void, RegExp])[] = [
      [(c) => Object.assign(c, { itemFeature: 'none' }), /\/itemFeature must name .*got "none"/],
      [(c) => c.extraItemFeatures.push('id'), /\/extraItemFeatures must have unique/],
      [(c) => c.context.push({ name: 'age', minHistory: 0 }), /\/context\/2\/name must name/],
      [
        (c) => Object.assign(c.features[2], { rows: 10 }),
        /\/features\/2\/rows .* people, 9, got 10/,
      ],
      [(c) => Object.assign(c, { itemTower: ['id'] }), /\/itemTower must order/],
      [(c) => Object.assign(c, { actions: ['a'] }), /\/actions must name the 3 actions/],
      [(c) => Object.assign(c, { actionWeights: [1, 3, 2] }), /\/actionWeights\/1 must be a power/],
      [(c) => c.tasks.reverse(), /\/tasks\/1 must come before the regression tasks/],
      [(c) => Object.assign(c, { maxTokens: 2 }), /\/maxTokens must hold the 2 context tokens/],
      [(c) => Object.assign(c, { weights: { other: 1 } }), /\/weights must be keyed by task names/],
      [(c) => Object.assign(c, { timeBucketClamp: 'rows' }), /\/timeBucketClamp/],
    ]
    for (const [change, message] of cases) refused(changed(SMALL_DLRM, change), message)
  })

  test('of MLPerf’s shape is what --random exports', () => {
    const { shape, config: configOf } = RANDOM_MODELS['dlrm-v3']
    const { layers, dModel, heads, dqk, dv, maxTokens, divisor } = configOf(shape)
    assert.deepEqual(
      { layers, dModel, heads, dqk, dv, maxTokens, divisor },
      {
        layers: 5,
        dModel: 512,
        heads: 4,
        dqk: 128,
        dv: 128,
        maxTokens: 7001,
        divisor: 9049,
      },
    )
  })
})
