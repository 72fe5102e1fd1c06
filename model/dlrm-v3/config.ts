import Type, { type Static } from 'typebox'
import { Compile } from 'typebox/compile'
import { check, show } from '../check.js'
import type { ConfigOf } from '../config.js'
import {
  type Block,
  count,
  Hash,
  invalid,
  LAYERS,
  ModelName,
  Name,
  Task,
  unique,
  Vocabulary,
} from '../config-schema.js'
import { fromHstuConfigs, isUpstream } from './upstream-config.js'

const Epsilon = Type.Number({ exclusiveMinimum: 0, maximum: 1 })

const Encoding = Type.Union([
  // The value is the row itself: an integer in 0 .. rows-1. The default.
  Type.Object({ kind: Type.Literal('row') }, { additionalProperties: false }),
  // The string at index i is row i.
  Vocabulary,
  Hash,
])

const DlrmConfig = Type.Object(
  {
    variant: Type.Literal('dlrm-v3'),
    name: Type.Optional(ModelName),
    ...LAYERS,
    tableDim: count(16_384),
    preprocessorHidden: count(65_536),
    itemHidden: count(65_536),
    headHidden: count(65_536),
    actionDim: count(1024),
    positionRows: count(1_048_576),
    timeRows: count(1_048_576),
    timeBucketClamp: Type.Optional(Type.Union([Type.Literal('rows-1'), Type.Literal('width-1')])),
    // N, frozen: upstream divides by the longest sequence of the batch, context and candidates included.
    divisor: count(16_777_216),
    // The longest history, context included; the divisor where absent.
    maxTokens: Type.Optional(count(1_048_576)),
    layerNormEps: Type.Optional(
      Type.Object(
        { layers: Epsilon, mlps: Epsilon, user: Epsilon },
        { additionalProperties: false },
      ),
    ),
    itemFeature: Name,
    extraItemFeatures: Type.Array(Name, { maxItems: 63 }),
    // In the order in which the item tower joins them; item and extra features where absent.
    itemTower: Type.Optional(Type.Array(Name, { minItems: 1, maxItems: 64 })),
    context: Type.Array(
      Type.Object(
        { name: Name, minHistory: Type.Integer({ minimum: 0 }) },
        { additionalProperties: false },
      ),
      { maxItems: 256 },
    ),
    features: Type.Array(
      Type.Object(
        {
          name: Name,
          table: Name,
          rows: count(2 ** 31 - 2),
          encoding: Type.Optional(Encoding),
        },
        { additionalProperties: false },
      ),
      { minItems: 1, maxItems: 1024 },
    ),
    // 30: masks are int32.
    actionWeights: Type.Array(Type.Integer({ minimum: 1, maximum: 2 ** 30 }), {
      minItems: 1,
      maxItems: 30,
    }),
    // What requests call the actions; `action_<weight>` where absent.
    actions: Type.Optional(Type.Array(Name, { maxItems: 30 })),
    tasks: Type.Array(Task, { minItems: 1, maxItems: 64 }),
    catalogue: Type.Optional(Name),
    weights: Type.Optional(Type.Record(Type.String(), Type.Number())),
  },
  { additionalProperties: false },
)

/** A DLRM-v3 ranking model as its `config.json` states it (spec, section 4). */
export type DlrmConfig = Static<typeof DlrmConfig>

export const DLRM_EPS = { layers: 1e-6, mlps: 1e-5, user: 1e-5 } as const

const BLOCK: Omit<Block, 'alpha'> = {
  silu: 'u',
  rab: false,
  normInAffine: true,
  normAttnAffine: true,
  combine: 'concat',
  uvqkBias: true,
  outBias: false,
}

const compiled = Compile(DlrmConfig)

/**
 * A checked config, stated in either form: this project's, or upstream's `DlrmHSTUConfig` as JSON.
 * @throws {RankError} CONFIG_INVALID with the JSON pointer of the first fault
 */
export function parseDlrm(value: unknown): ConfigOf<'dlrm-v3'> {
  const raw = isUpstream(value) ? fromHstuConfigs(value) : value
  const stated = check(compiled, raw, 'CONFIG_INVALID', 'config')
  const { itemFeature, extraItemFeatures, context, features, actionWeights, tasks } = stated
  const names = (field: readonly { readonly name: string }[]) => field.map(({ name }) => name)
  const itemNames = [itemFeature, ...extraItemFeatures]
  unique('/extraItemFeatures', itemNames)
  unique('/context', names(context))
  unique('/features', names(features))
  unique('/tasks', names(tasks))
  const actions = stated.actions ?? actionWeights.map((weight) => `action_${weight}`)
  unique('/actions', actions)
  unique('/actionWeights', actionWeights.map(String))
  if (actions.length !== actionWeights.length) {
    throw invalid(
      '/actions',
      `must name the ${actionWeights.length} actions of actionWeights, got ${actions.length}`,
    )
  }
  actionWeights.forEach((weight, i) => {
    if ((weight & (weight - 1)) !== 0)
      throw invalid(`/actionWeights/${i}`, `must be a power of two, got ${weight}`)
  })
  tasks.forEach(({ type }, i) => {
    if (type === 'binary' && tasks[i - 1]?.type === 'regression')
      throw invalid(`/tasks/${i}`, 'must come before the regression tasks: binary ones are first')
  })
  for (const task of Object.keys(stated.weights ?? {})) {
    if (!names(tasks).includes(task))
      throw invalid('/weights', `must be keyed by task names, got ${show(task)}`)
  }
  for (const [i, { table, rows }] of features.entries()) {
    const other = features.find((feature) => feature.table === table)
    if (other !== undefined && other.rows !== rows) {
      throw invalid(
        `/features/${i}/rows`,
        `must be the same for all features of table ${table}, ${other.rows}, got ${rows}`,
      )
    }
  }
  const feature = (name: string, path: string) => {
    const found = features.find((each) => each.name === name)
    if (found === undefined) throw invalid(path, `must name one of features, got ${show(name)}`)
    // The bundle's tables have a row 0 before the checkpoint's, zeros for a value that nobody knows.
    const { table, rows, encoding = { kind: 'row' } } = found
    const index = { kind: 'index' } as const
    return { name, table, rows: rows + 1, encoding: encoding.kind === 'row' ? index : encoding }
  }
  const itemFeatures = itemNames.map((each, i) =>
    feature(each, i === 0 ? '/itemFeature' : `/extraItemFeatures/${i - 1}`),
  )
  const tower = stated.itemTower ?? itemNames
  if (tower.toSorted().join('\n') !== itemNames.toSorted().join('\n')) {
    throw invalid(
      '/itemTower',
      `must order the item features ${show(itemNames)}, got ${show(tower)}`,
    )
  }
  const { maxTokens = stated.divisor } = stated
  if (context.length >= maxTokens) {
    throw invalid(
      '/maxTokens',
      `must hold the ${context.length} context tokens and an event, got ${maxTokens}`,
    )
  }
  const { name, dModel, heads, dqk, dv, layers, divisor, headHidden, catalogue, weights } = stated
  return {
    variant: 'dlrm-v3',
    stated,
    ...(name !== undefined && { name }),
    ...{ dModel, heads, dqk, dv, layers, divisor, maxTokens, headHidden },
    tokensPerEvent: 1,
    // No relative bias: nothing reads these two.
    positions: 1,
    timeBuckets: 1,
    layerNormEps: stated.layerNormEps?.layers ?? DLRM_EPS.layers,
    block: { ...BLOCK, alpha: 1 / Math.sqrt(dqk) },
    context: context.map((slot, i) => feature(slot.name, `/context/${i}/name`)),
    itemFeatures,
    itemId: itemFeature,
    actions,
    auxiliary: [],
    tasks,
    ...(catalogue !== undefined && { catalogue }),
    ...(weights !== undefined && { weights }),
  }
}
