import Type, { type Static } from 'typebox'
import { show } from './check.js'
import { RankError } from './errors.js'

// What the configs of all variants are made of.

export const count = (maximum: number) => Type.Integer({ minimum: 1, maximum })
export const Name = Type.String({ minLength: 1, maxLength: 128 })
// Printed, logged and sent back in requests.
export const ModelName = Type.String({ pattern: '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$' })

/** Width of the model, heads and their widths, number of layers. */
export const LAYERS = {
  dModel: count(16_384),
  heads: count(256),
  dqk: count(1024),
  dv: count(1024),
  layers: count(256),
}

// A JSON array of strings, or one id a line where the file's name does not end in .json; the string at index i
// is row i+1. With buckets the last rows are those of all other values: FNV-1a mod buckets behind the strings'.
export const Vocabulary = Type.Object(
  { kind: Type.Literal('vocabulary'), file: Name, buckets: Type.Optional(count(2 ** 31 - 2)) },
  { additionalProperties: false },
)
// FNV-1a (32 bit, UTF-8) mod the table's rows without that of missing values.
export const Hash = Type.Object({ kind: Type.Literal('hash') }, { additionalProperties: false })

/** How a raw feature value becomes a table row; row 0 is always "unknown or missing". */
export const Encoding = Type.Union([
  // The value is the row itself: an integer in 1 .. rows-1.
  Type.Object({ kind: Type.Literal('row') }, { additionalProperties: false }),
  Vocabulary,
  Hash,
  // A number x is row 1 + count(edges <= x).
  Type.Object(
    { kind: Type.Literal('bucket'), edges: Type.Array(Type.Number(), { maxItems: 100_000 }) },
    { additionalProperties: false },
  ),
])

export const Feature = Type.Object(
  { name: Name, rows: count(2 ** 31 - 1), encoding: Type.Optional(Encoding) },
  { additionalProperties: false },
)

export const Task = Type.Object(
  { name: Name, type: Type.Union([Type.Literal('binary'), Type.Literal('regression')]) },
  { additionalProperties: false },
)

/** What differs between the public HSTU variants inside one layer (spec: table "What all three share"). */
export const Block = Type.Object(
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

export type Encoding = Static<typeof Encoding>
export type Feature = Static<typeof Feature>
export type Task = Static<typeof Task>
export type Block = Static<typeof Block>

export function invalid(path: string, message: string): RankError {
  return new RankError('CONFIG_INVALID', `config ${path || '/'} ${message}`, { path })
}

/** @throws {RankError} CONFIG_INVALID at a name that is there twice */
export function unique(path: string, names: readonly string[]): void {
  const twice = names.find((name, i) => names.indexOf(name) !== i)
  if (twice !== undefined) throw invalid(path, `must have unique names, got ${show(twice)} twice`)
}
