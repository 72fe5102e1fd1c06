import Type, { type Static, type TSchema } from 'typebox'

/** 9999-12-31T23:59:59Z: anything above is not seconds but milliseconds. */
export const MAX_TIME_SEC = 253_402_300_799
export const MAX_ID_CHARS = 256
export const MAX_SOURCES = 32
export const MAX_FEATURE_CHARS = 1024
/** Names of features, series and tasks. Not `.`: it skips line breaks, and with them the check. */
const NAME = '^[\\s\\S]{1,128}$'
const MAX_FEATURES = 256
const MAX_SERIES = 64
export const MAX_ACTIONS = 64
/** Keeps the value formula finite. */
const MAX_WEIGHT = 1e9
export const MAX_DEADLINE_MS = 60_000
const MAX_OFFSET = 1e9
const MAX_TOP_K = 10_000
export const DEFAULT_TOP_K = 100

const closed = { additionalProperties: false }

const Id = (what: string, example: string) =>
  Type.String({ minLength: 1, maxLength: MAX_ID_CHARS, description: what, examples: [example] })

const Names = <T extends TSchema>(values: T, maxProperties: number, description: string) =>
  Type.Record(Type.String({ pattern: NAME }), values, { ...closed, maxProperties, description })

const Time = Type.Integer({
  minimum: 0,
  maximum: MAX_TIME_SEC,
  description: 'Whole seconds (not milliseconds) since 1970-01-01T00:00:00Z.',
  examples: [1_700_000_000],
})

const FeatureValue = Type.Union([Type.String({ maxLength: MAX_FEATURE_CHARS }), Type.Number()])

export const Features = Names(
  FeatureValue,
  MAX_FEATURES,
  'Features by name, each a string or a number as the model encodes it. A name that the model does not have is a warning.',
)

export const HistoryEvent = Type.Object(
  {
    item: Id('The item that the user met.', 'video-17'),
    time: Time,
    actions: Type.Optional(
      Type.Array(Id('Name of an action type of the model.', 'click'), {
        maxItems: MAX_ACTIONS,
        description: '[] = shown, nothing done; absent = not observed.',
      }),
    ),
    features: Type.Optional(Features),
  },
  { ...closed, description: 'One interaction of the user, or one exposure without any action.' },
)

export const SeriesEntry = Type.Object(
  { value: FeatureValue, time: Time },
  { ...closed, description: 'One entry of a slowly changing series.' },
)

export const CandidateItem = Type.Object(
  {
    item: Id('The item to score.', 'video-42'),
    features: Type.Optional(Features),
  },
  closed,
)

export const Candidate = Type.Union([Id('The item to score.', 'video-42'), CandidateItem])

export const ExcludedId = Id('An item to leave out.', 'video-17')

const IdempotencyKey = Type.String({
  minLength: 1,
  maxLength: MAX_ID_CHARS,
  description: 'Repeat it with a retry: the first answer comes again, and nothing is added twice.',
  examples: ['4f0c1d7e'],
})

/** Who, and what of the history comes with the request. */
const user = {
  user: Type.Object(
    { id: Id('Who the ranking is for.', 'u1'), features: Type.Optional(Features) },
    closed,
  ),
  history: Type.Optional(
    Type.Array(HistoryEvent, {
      description:
        'The main history, in any order; sorted by time. Absent = the stored history (see POST /v1/users/{id}/events), [] = none.',
    }),
  ),
  histories: Type.Optional(
    Type.Array(Type.Array(HistoryEvent), {
      maxItems: MAX_SOURCES,
      description:
        'More histories, merged by time; at equal times the main history comes first, then these in their order.',
    }),
  ),
  series: Type.Optional(
    Names(Type.Array(SeriesEntry), MAX_SERIES, 'Slowly changing series by name.'),
  ),
  historyOffset: Type.Optional(
    Type.Integer({
      minimum: 0,
      maximum: MAX_OFFSET,
      description:
        'How many older events of all histories and series are not in the request; absent = 0. Whoever posts only the newest events says so here: K/V can be kept only of a history whose start does not move with every event.',
    }),
  ),
}
const Model = Type.Optional(
  Id(
    'Name of a model, `name@version`, or `name@stable`, `name@canary`; absent = the default model. The name alone is the stable version, for its share of the users the canary.',
    'kuairand',
  ),
)

const Weights = Type.Optional(
  Names(
    Type.Number({ minimum: -MAX_WEIGHT, maximum: MAX_WEIGHT }),
    MAX_SERIES,
    "Weight of each task in the score, 0 for those not named; absent = the bundle's own.",
  ),
)

const DeadlineMs = (description: string) =>
  Type.Optional(Type.Number({ minimum: 1, maximum: MAX_DEADLINE_MS, description }))

export const RankRequest = Type.Object(
  {
    ...user,
    candidates: Type.Array(Candidate, {
      minItems: 1,
      description:
        'What to score: item ids, or items with features. Repeated ones are scored each; ties keep this order.',
    }),
    time: Type.Optional({ ...Time, description: 'Query time in whole seconds; absent = now.' }),
    topK: Type.Optional(
      Type.Integer({ minimum: 1, description: 'How many items to answer; absent = all.' }),
    ),
    weights: Weights,
    deadlineMs: DeadlineMs(
      'Budget in milliseconds for queue and compute; then 504, or see `partial`.',
    ),
    partial: Type.Optional(
      Type.Boolean({ description: 'At the deadline answer what is scored instead of 504.' }),
    ),
    explain: Type.Optional(
      Type.Boolean({ description: 'Add logits to the items, and how the answer was computed.' }),
    ),
    model: Model,
  },
  {
    ...closed,
    examples: [
      {
        user: { id: 'u1' },
        history: [
          { item: '17', time: 1_650_000_000, actions: ['click'] },
          { item: '23', time: 1_650_000_060, actions: [] },
        ],
        candidates: ['42', { item: '43' }],
        time: 1_650_000_100,
        topK: 10,
      },
    ],
  },
)

export const RetrieveRequest = Type.Object(
  {
    ...user,
    time: Type.Optional({ ...Time, description: 'Query time in whole seconds; absent = now.' }),
    topK: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: MAX_TOP_K,
        description: `How many items to answer; absent = ${DEFAULT_TOP_K}. Fewer come only where the candidate list has no more.`,
      }),
    ),
    exclude: Type.Optional(Type.Array(ExcludedId, { description: 'Items to leave out.' })),
    excludeHistory: Type.Optional(
      Type.Boolean({
        description: 'Leave out every item of the histories, the stored one too; absent = true.',
      }),
    ),
    deadlineMs: DeadlineMs('Budget in milliseconds for queue and compute; then 504.'),
    explain: Type.Optional(Type.Boolean({ description: 'Add how the answer was computed.' })),
    model: Model,
    rank: Type.Optional(
      Type.Object(
        {
          model: Id('Who ranks: a model as in `model`.', 'kuairand'),
          topK: Type.Optional(
            Type.Integer({ minimum: 1, description: 'How many items to answer; absent = all.' }),
          ),
          weights: Weights,
        },
        {
          ...closed,
          description:
            'Rank the retrieved items with another model, for the same user and histories. Actions, features and series of the request are for that model.',
        },
      ),
    ),
  },
  {
    ...closed,
    examples: [
      {
        user: { id: 'u1' },
        history: [
          { item: '17', time: 1_650_000_000 },
          { item: '23', time: 1_650_000_060 },
        ],
        time: 1_650_000_100,
        topK: 10,
      },
    ],
  },
)

/** The envelope alone: each request is checked by itself, so that a bad one loses no other. */
export const BatchEnvelope = Type.Object(
  { requests: Type.Array(Type.Unknown(), { minItems: 1 }) },
  closed,
)

export const PrefetchRequest = Type.Object(
  {
    ...user,
    time: Type.Optional({ ...Time, description: 'Query time in whole seconds; absent = now.' }),
    model: Model,
    wait: Type.Optional(
      Type.Boolean({ description: 'Answer 200 when the K/V is there, instead of 202 at once.' }),
    ),
  },
  { ...closed, examples: [{ user: { id: 'u1' }, wait: true }] },
)

export const EventsRequest = Type.Object(
  {
    events: Type.Array(HistoryEvent, {
      minItems: 1,
      description:
        'In any order; one that is stored already, equal in time, item, actions and features, is not stored twice.',
    }),
    idempotencyKey: Type.Optional(IdempotencyKey),
  },
  {
    ...closed,
    examples: [{ events: [{ item: '17', time: 1_650_000_000, actions: ['click'] }] }],
  },
)

export type RankRequest = Static<typeof RankRequest>
export type RetrieveRequest = Static<typeof RetrieveRequest>
export type PrefetchRequest = Static<typeof PrefetchRequest>
export type EventsRequest = Static<typeof EventsRequest>
