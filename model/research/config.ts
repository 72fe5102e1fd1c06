import Type, { type Static } from 'typebox'
import { Compile } from 'typebox/compile'
import { check } from '../check.js'
import type { ConfigOf } from '../config.js'
import { type Block, count, Encoding, invalid, LAYERS, ModelName, Name } from '../config-schema.js'

const Epsilon = Type.Number({ exclusiveMinimum: 0, maximum: 1 })

const ResearchConfig = Type.Object(
  {
    variant: Type.Literal('research'),
    name: Type.Optional(ModelName),
    ...LAYERS,
    // Ids are 1 .. items; the table has a row 0 for padding.
    items: count(2 ** 31 - 2),
    maxSequenceLen: count(1_048_576),
    maxOutputLen: Type.Integer({ minimum: 0, maximum: 1_048_576 }),
    // N: maxSequenceLen + maxOutputLen where absent, and nothing else.
    divisor: Type.Optional(count(2_097_152)),
    timeBuckets: Type.Optional(Type.Literal(128)),
    layerNormEps: Type.Optional(Epsilon),
    outputNormEps: Type.Optional(Epsilon),
    itemEncoding: Type.Optional(Encoding),
    itemId: Type.Optional(Name),
    // JSON array of the item ids that retrieval ranks over; all of them when absent.
    candidates: Type.Optional(Type.String({ minLength: 1, maxLength: 256 })),
  },
  { additionalProperties: false },
)

/** A next-item model of the public research code, as its `config.json` states it (spec, section 3). */
export type ResearchConfig = Static<typeof ResearchConfig>

/** The one "task" of a next-item model: how close a candidate is to the user, from -1 to 1. */
const SIMILARITY = { name: 'similarity', type: 'regression' } as const

const BLOCK: Block = {
  silu: 'uvqk',
  alpha: 1,
  rab: true,
  normInAffine: false,
  normAttnAffine: false,
  combine: 'gate',
  uvqkBias: false,
  outBias: true,
}

const compiled = Compile(ResearchConfig)

/** @throws {RankError} CONFIG_INVALID with the JSON pointer of the first fault */
export function parseResearch(value: unknown): ConfigOf<'research'> {
  const stated = check(compiled, value, 'CONFIG_INVALID', 'config')
  const { name, dModel, heads, dqk, dv, layers, items, itemEncoding, itemId = 'id' } = stated
  const { candidates } = stated
  const divisor = stated.maxSequenceLen + stated.maxOutputLen
  if (stated.divisor !== undefined && stated.divisor !== divisor) {
    throw invalid(
      '/divisor',
      `must be maxSequenceLen + maxOutputLen, ${divisor}, got ${stated.divisor}`,
    )
  }
  if (itemEncoding?.kind === 'bucket') {
    throw invalid('/itemEncoding', 'must be row, vocabulary or hash: items are no numbers')
  }
  return {
    variant: 'research',
    stated,
    ...(name !== undefined && { name }),
    ...{ dModel, heads, dqk, dv, layers, divisor },
    maxTokens: stated.maxSequenceLen,
    tokensPerEvent: 1,
    positions: divisor,
    timeBuckets: 129,
    headHidden: dModel,
    layerNormEps: stated.layerNormEps ?? 1e-6,
    block: BLOCK,
    context: [],
    itemFeatures: [
      {
        name: itemId,
        rows: items + 1,
        ...(itemEncoding !== undefined && { encoding: itemEncoding }),
      },
    ],
    itemId,
    // Ids that are hashed cannot be had back from the table: they need a list.
    ...((candidates !== undefined || itemEncoding?.kind !== 'hash') && {
      retrieval: { ...(candidates !== undefined && { candidates }) },
    }),
    actions: [],
    auxiliary: [],
    tasks: [SIMILARITY],
  }
}
