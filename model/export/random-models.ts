import { type HstuConfig, parseConfig, type Variant } from '../config.js'
import { PAPER_SHAPE, type RandomShape, randomConfig } from './random.js'

/** A variant's model with random weights: the shape where nobody says, and the config of a shape. */
type RandomModel = {
  readonly shape: RandomShape
  readonly config: (shape: RandomShape) => HstuConfig
}

/** Candidates of MLPerf's DLRM-v3, which upstream's run-time N counts too. */
const DLRM_CANDIDATES = 2048

export const RANDOM_MODELS: { readonly [V in Variant]: RandomModel } = {
  paper: { shape: PAPER_SHAPE, config: randomConfig },
  // The large model of upstream's ML-1M config.
  research: {
    shape: { layers: 8, dModel: 50, heads: 2, maxTokens: 200, items: 3953 },
    config: ({ layers, dModel, heads, maxTokens, items }) =>
      parseConfig({
        variant: 'research',
        name: `random-research-l${layers}-d${dModel}-h${heads}-n${maxTokens}`,
        ...{ layers, dModel, heads },
        dqk: dModel / heads,
        dv: dModel / heads,
        items: items - 1,
        maxSequenceLen: maxTokens,
        maxOutputLen: 11,
      }),
  },
  // MLPerf's dense shape: 7,000 events behind one context token.
  'dlrm-v3': {
    shape: { layers: 5, dModel: 512, heads: 4, maxTokens: 7001, items: 10_001 },
    config: ({ layers, dModel, heads, maxTokens, items }) =>
      parseConfig({
        variant: 'dlrm-v3',
        name: `random-dlrm-v3-l${layers}-d${dModel}-h${heads}-n${maxTokens}`,
        hstuConfigs: {
          hstu_num_heads: heads,
          hstu_attn_linear_dim: dModel / heads,
          hstu_attn_qk_dim: dModel / heads,
          hstu_attn_num_layers: layers,
          hstu_embedding_table_dim: dModel,
          hstu_preprocessor_hidden_dim: 256,
          hstu_transducer_embedding_dim: dModel,
          contextual_feature_to_max_length: { user_id: 1 },
          contextual_feature_to_min_uih_length: { user_id: 20 },
          multitask_configs: [{ task_name: 'rating', task_type: 0 }],
          user_embedding_feature_names: ['item_id', 'user_id', 'item_category_id'],
          item_embedding_feature_names: ['item_candidate_id', 'item_candidate_category_id'],
          uih_post_id_feature_name: 'item_id',
          merge_uih_candidate_feature_mapping: [
            ['item_id', 'item_candidate_id'],
            ['item_category_id', 'item_candidate_category_id'],
          ],
          action_weights: [1, 2, 4, 8, 16],
        },
        embeddingTables: {
          item_id: { num_embeddings: items, feature_names: ['item_id', 'item_candidate_id'] },
          item_category_id: {
            num_embeddings: 128,
            feature_names: ['item_category_id', 'item_candidate_category_id'],
          },
          user_id: { num_embeddings: 10_000, feature_names: ['user_id'] },
        },
        divisor: maxTokens + DLRM_CANDIDATES,
        maxTokens,
      }),
  },
}
