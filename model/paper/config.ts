import Type, { type Static } from 'typebox'
import { Compile } from 'typebox/compile'
import { check, show } from '../check.js'
import {
  Block,
  count,
  Encoding,
  Feature,
  invalid,
  LAYERS,
  ModelName,
  Name,
  Task,
  unique,
} from '../config-schema.js'

const Auxiliary = Type.Object(
  {
    name: Name,
    table: Name,
    rows: Type.Optional(count(2 ** 31 - 1)),
    encoding: Type.Optional(Encoding),
    action: Name,
  },
  { additionalProperties: false },
)

const PaperConfig = Type.Object(
  {
    variant: Type.Literal('paper'),
    name: Type.Optional(ModelName),
    ...LAYERS,
    maxTokens: count(1_048_576),
    positions: count(1_048_576),
    timeBuckets: Type.Literal(128),
    headHidden: count(65_536),
    layerNormEps: Type.Number({ exclusiveMinimum: 0, maximum: 1 }),
    block: Type.Optional(Type.Partial(Block, { additionalProperties: false })),
    context: Type.Array(Feature, { maxItems: 256 }),
    itemFeatures: Type.Array(Feature, { minItems: 1, maxItems: 64 }),
    itemId: Type.Optional(Name),
    // 30, not 32: one bit of the int32 mask marks action tokens, one is the sign.
    actions: Type.Array(Name, { minItems: 1, maxItems: 30 }),
    unobservedAction: Type.Optional(Name),
    auxiliary: Type.Array(Auxiliary, { maxItems: 64 }),
    tasks: Type.Array(Task, { minItems: 1, maxItems: 64 }),
    catalogue: Type.Optional(Name),
    weights: Type.Optional(Type.Record(Type.String(), Type.Number())),
  },
  { additionalProperties: false },
)

/** A model as its `config.json` states it: every constant of the HSTU spec, sections 1 and 2. */
export type PaperConfig = Static<typeof PaperConfig>

const compiled = Compile(PaperConfig)

/**
 * A checked config of variant `paper`.
 * @throws {RankError} CONFIG_INVALID with the JSON pointer of the first fault
 */
export function parsePaper(value: unknown): PaperConfig {
  const config = check(compiled, value, 'CONFIG_INVALID', 'config')
  for (const field of ['context', 'itemFeatures', 'auxiliary', 'tasks'] as const) {
    unique(
      `/${field}`,
      config[field].map(({ name }) => name),
    )
  }
  unique('/actions', config.actions)
  config.auxiliary.forEach((series, i) => {
    if (!config.actions.includes(series.action)) {
      throw invalid(`/auxiliary/${i}/action`, `must be one of actions, got ${show(series.action)}`)
    }
    const shared = config.itemFeatures.some(({ name }) => series.table === `item.${name}`)
    if (!shared && !series.table.startsWith('aux.')) {
      throw invalid(
        `/auxiliary/${i}/table`,
        `must be item.<feature> or aux.<name>, got ${show(series.table)}`,
      )
    }
    if (!shared && series.rows === undefined) {
      throw invalid(`/auxiliary/${i}/rows`, 'must be given for a table of its own')
    }
    if (shared && (series.rows !== undefined || series.encoding !== undefined)) {
      throw invalid(`/auxiliary/${i}`, `takes rows and encoding from ${series.table}`)
    }
    const other = config.auxiliary.find(({ table }) => table === series.table)
    if (other?.rows !== series.rows) {
      throw invalid(
        `/auxiliary/${i}/rows`,
        `must be the same for all series of ${series.table}, ${other?.rows}, got ${series.rows}`,
      )
    }
  })
  const { itemId = 'id' } = config
  if (!config.itemFeatures.some(({ name }) => name === itemId)) {
    throw invalid('/itemId', `must name an item feature, got ${show(itemId)}`)
  }
  if (config.unobservedAction !== undefined && !config.actions.includes(config.unobservedAction)) {
    throw invalid(
      '/unobservedAction',
      `must be one of actions, got ${show(config.unobservedAction)}`,
    )
  }
  for (const task of Object.keys(config.weights ?? {})) {
    if (!config.tasks.some(({ name }) => name === task)) {
      throw invalid('/weights', `must be keyed by task names, got ${show(task)}`)
    }
  }
  const tables = [...config.context, ...config.itemFeatures, ...config.auxiliary]
  for (const { name, rows = 0, encoding } of tables) {
    if (encoding?.kind === 'bucket' && encoding.edges.length + 2 !== rows) {
      throw invalid(`/${name}`, `needs edges + 2 = ${encoding.edges.length + 2} rows, got ${rows}`)
    }
    if (
      encoding?.kind === 'bucket' &&
      encoding.edges.some((e, i, all) => i > 0 && e <= (all[i - 1] ?? e))
    ) {
      throw invalid(`/${name}`, 'must have strictly ascending edges')
    }
    if (encoding?.kind === 'hash' && rows < 2) {
      throw invalid(`/${name}`, `needs at least 2 rows to hash into, got ${rows}`)
    }
  }
  if (config.context.length > config.maxTokens) {
    throw invalid(
      '/maxTokens',
      `must hold the ${config.context.length} context tokens, got ${config.maxTokens}`,
    )
  }
  return config
}
