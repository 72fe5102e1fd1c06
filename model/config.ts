import { readFileSync } from 'node:fs'
import Type, { type Static } from 'typebox'
import { Compile } from 'typebox/compile'
import { check, show } from './check.js'
import { RankError } from './errors.js'

const count = (maximum: number) => Type.Integer({ minimum: 1, maximum })
const Name = Type.String({ minLength: 1, maxLength: 128 })

/** How a raw feature value becomes a table row; row 0 is always "unknown or missing". */
const Encoding = Type.Union([
  // The value is the row itself: an integer in 1 .. rows-1.
  Type.Object({ kind: Type.Literal('row') }, { additionalProperties: false }),
  // A JSON array of strings; the string at index i is row i+1.
  Type.Object({ kind: Type.Literal('vocabulary'), file: Name }, { additionalProperties: false }),
  // 1 + FNV-1a (32 bit, UTF-8) mod (rows - 1).
  Type.Object({ kind: Type.Literal('hash') }, { additionalProperties: false }),
  // A number x is row 1 + count(edges <= x).
  Type.Object(
    { kind: Type.Literal('bucket'), edges: Type.Array(Type.Number(), { maxItems: 100_000 }) },
    { additionalProperties: false },
  ),
])

const Feature = Type.Object(
  { name: Name, rows: count(2 ** 31 - 1), encoding: Type.Optional(Encoding) },
  { additionalProperties: false },
)

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

const Task = Type.Object(
  { name: Name, type: Type.Union([Type.Literal('binary'), Type.Literal('regression')]) },
  { additionalProperties: false },
)

/** What differs between the public HSTU variants inside one layer (spec: table "What all three share"). */
const Block = Type.Object(
  {
    silu: Type.Union([Type.Literal('uvqk'), Type.Literal('u')]),
    alpha: Type.Number({ exclusiveMinimum: 0, maximum: 1e6 }),
    rab: Type.Boolean(),
    normInAffine: Type.Boolean(),
    normAttnAffine: Type.Boolean(),
    combine: Type.Union([Type.Literal('gate'), Type.Literal('concat')]),
    uvqkBias: Type.Boolean(),
    outBias: Type.Boolean(),
  },
  { additionalProperties: false },
)

const Config = Type.Object(
  {
    variant: Type.Literal('paper'),
    // Printed, logged and sent back in requests.
    name: Type.Optional(Type.String({ pattern: '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$' })),
    dModel: count(16_384),
    heads: count(256),
    dqk: count(1024),
    dv: count(1024),
    layers: count(256),
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

export type Encoding = Static<typeof Encoding>
export type Feature = Static<typeof Feature>
export type Task = Static<typeof Task>
export type Block = Static<typeof Block>
/** A model as its `config.json` states it: every constant of the HSTU spec, sections 1 and 2. */
export type HstuConfig = Static<typeof Config>

/** The constants of variant `paper` (spec section 1); `block` in a config overrides them one by one. */
const PAPER_BLOCK: Block = {
  silu: 'uvqk',
  alpha: 1,
  rab: true,
  normInAffine: true,
  normAttnAffine: true,
  combine: 'gate',
  uvqkBias: false,
  outBias: true,
}

const compiled = Compile(Config)

export function blockOf(config: HstuConfig): Block {
  return { ...PAPER_BLOCK, ...config.block }
}

/** The item feature that a request's `item` is the value of. */
export function itemIdOf({ itemId = 'id' }: HstuConfig): string {
  return itemId
}

/**
 * A checked config.
 * @throws {RankError} CONFIG_INVALID with the JSON pointer of the first fault
 */
export function parseConfig(value: unknown): HstuConfig {
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
  const itemId = itemIdOf(config)
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

/** @throws {RankError} CONFIG_INVALID when the file is missing, no JSON or no config */
export function readConfig(file: string): HstuConfig {
  return parseConfig(readJson(file, 'CONFIG_INVALID'))
}

/** A parsed JSON file; a fault carries `code` and the file's name. */
export function readJson(file: string, code: 'CONFIG_INVALID' | 'BUNDLE_INVALID'): unknown {
  try {
    return JSON.parse(readFileSync(file, 'utf8'))
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RankError(code, `cannot read ${file} as JSON: ${why}`, { cause })
  }
}

function invalid(path: string, message: string): RankError {
  return new RankError('CONFIG_INVALID', `config ${path || '/'} ${message}`, { path })
}

function unique(path: string, names: readonly string[]): void {
  const twice = names.find((name, i) => names.indexOf(name) !== i)
  if (twice !== undefined) throw invalid(path, `must have unique names, got ${show(twice)} twice`)
}
