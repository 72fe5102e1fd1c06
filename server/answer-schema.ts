import Type from 'typebox'

/** Shapes of the replies. They document: replies are written by JSON.stringify (see app.ts). */

const ms = (description: string) => Type.Number({ description: `Milliseconds: ${description}.` })

export const Problem = Type.Object(
  {
    code: Type.String({ description: 'Branch on this.', examples: ['INVALID_REQUEST'] }),
    message: Type.String({
      description: 'What was expected and what was got.',
      examples: ['must be integer, got "x"'],
    }),
    path: Type.Optional(
      Type.String({
        description: 'JSON pointer to the fault; inside a batch relative to that request.',
        examples: ['/history/3/time'],
      }),
    ),
    retryAfterMs: Type.Optional(
      Type.Integer({
        description:
          'With OVERLOADED: when what is queued now should be done; Retry-After has it in whole seconds.',
      }),
    ),
  },
  { description: 'What went wrong.' },
)

const kv = {
  state: Type.Union(
    [Type.Literal('hit'), Type.Literal('stale'), Type.Literal('miss'), Type.Literal('none')],
    {
      description:
        "Where the history's K/V came from; stale: a prefix was cached; none: nothing was kept.",
    },
  ),
  tier: Type.Optional(
    Type.Union([Type.Literal(1), Type.Literal(2)], {
      description: 'Where the reused tokens were: 1 = this process, 2 = Redis.',
    }),
  ),
  reusedTokens: Type.Integer(),
  prefilledTokens: Type.Integer(),
}

export const Kv = Type.Object(kv, { description: 'What the K/V cache did.' })

export const ExplainedKv = Type.Object(
  {
    ...kv,
    decision: Type.Optional(
      Type.Union(
        (['hit', 'append', 'fetch', 'recompute', 'onePass'] as const).map((name) =>
          Type.Literal(name),
        ),
        { description: 'How the scores came about: what was predicted to cost least.' },
      ),
    ),
    measuredMs: Type.Optional(ms('K/V and scores')),
    predictedMs: Type.Optional(ms('the prediction of measuredMs')),
  },
  { description: 'What the K/V cache did, and what that should have cost.' },
)

export const AnswerWarning = Type.Object({
  code: Type.String(),
  message: Type.String(),
  count: Type.Integer(),
})
const warnings = Type.Array(AnswerWarning, {
  description: 'What the caller should know but did not stop the ranking.',
})

const queueMs = ms(
  'from the headers of the request to the beginning of its work: reading it, and the queue',
)
const history = {
  sequenceMs: ms('reading the stored history, and all of it to tokens'),
  historyMs: ms('cache lookup, prefill or append, and the wait for a worker'),
}
const totalMs = ms('all of it')
const rankStages = {
  ...history,
  scoreMs: ms('scoring the micro-batches'),
  headsMs: ms('predictions, value formula, sorting'),
  totalMs,
}
const stages = { queueMs, ...rankStages }
const retrieveStages = {
  ...{ queueMs, ...history },
  encodeMs: ms('the user at the end of the history'),
  searchMs: ms('the candidate list'),
  totalMs,
}

export const RankTimings = Type.Object(stages)
export const RetrieveTimings = Type.Object(retrieveStages)

export const UnknownItems = Type.Object({
  count: Type.Integer({ description: 'With repetitions.' }),
  items: Type.Array(Type.String(), { description: 'The first few different ones.' }),
})

export const RankedItem = Type.Object({
  item: Type.String(),
  score: Type.Number({ description: 'Sum over tasks of weight x prediction.' }),
  tasks: Type.Record(Type.String(), Type.Number(), {
    description: 'Per task: a probability (binary) or the logit itself (regression).',
    examples: [{ click: 0.41 }],
  }),
  index: Type.Optional(
    Type.Integer({ description: 'Only with explain: place in the request’s candidates.' }),
  ),
  logits: Type.Optional(
    Type.Array(Type.Number(), { description: 'Only with explain: one per task.' }),
  ),
})

export const RankAnswer = Type.Object(
  {
    model: Type.String({ description: 'name@version of the bundle.', examples: ['kuairand@3f2a'] }),
    items: Type.Array(RankedItem, { description: 'Best first.' }),
    kv: Kv,
    timings: RankTimings,
    warnings,
    partial: Type.Optional(
      Type.Literal(true, { description: 'The deadline came before every candidate was scored.' }),
    ),
    explain: Type.Optional(
      Type.Object({
        kv: ExplainedKv,
        timings: Type.Object({ parseMs: ms('JSON and schema'), ...stages }),
        historyTokens: Type.Integer(),
        truncatedEvents: Type.Integer(),
        unknownItems: Type.Object(
          { history: UnknownItems, candidates: UnknownItems },
          {
            description: 'Items that the model does not know: they count by their other features.',
          },
        ),
        candidates: Type.Integer(),
        scored: Type.Integer(),
        microBatches: Type.Integer(),
        microBatchMs: Type.Array(ms('each micro-batch, its wait for a worker included')),
        microBatchSize: Type.Integer(),
        retries: Type.Integer({ description: 'Runs lost to a crashed worker.' }),
      }),
    ),
  },
  { description: 'The ranking.' },
)

export const RetrievedItem = Type.Object({
  item: Type.String(),
  score: Type.Number({
    description: 'How close item and user are, from -1 to 1; with `rank` the ranking’s score.',
  }),
  tasks: Type.Optional(
    Type.Record(Type.String(), Type.Number(), { description: 'Only with `rank`: per task.' }),
  ),
  retrievalScore: Type.Optional(
    Type.Number({ description: 'Only with `rank`: how close item and user are.' }),
  ),
  index: Type.Optional(
    Type.Integer({ description: 'Only with explain: place in the candidate list.' }),
  ),
})

export const RetrieveAnswer = Type.Object(
  {
    model: Type.String({ description: 'name@version of the bundle that retrieved.' }),
    items: Type.Array(RetrievedItem, { description: 'Best first.' }),
    kv: Kv,
    timings: RetrieveTimings,
    warnings,
    rank: Type.Optional(
      Type.Object(
        {
          model: Type.String({ description: 'name@version of the bundle that ranked.' }),
          kv: Kv,
          timings: Type.Object(rankStages),
        },
        { description: 'Only where a ranking was asked for, and there was something to rank.' },
      ),
    ),
    explain: Type.Optional(
      Type.Object({
        kv: ExplainedKv,
        timings: Type.Object({ parseMs: ms('JSON and schema'), ...retrieveStages }),
        historyTokens: Type.Integer(),
        truncatedEvents: Type.Integer(),
        unknownItems: Type.Object({ history: UnknownItems, exclude: UnknownItems }),
        listed: Type.Integer({ description: 'Items of the candidate list.' }),
        excluded: Type.Integer({ description: 'How many of them were left out.' }),
        chunkMs: Type.Array(ms('each part of the list, its wait for a worker included')),
        chunkItems: Type.Integer({ description: 'The most items in one part.' }),
        retries: Type.Integer({ description: 'Runs lost to a crashed worker.' }),
      }),
    ),
  },
  { description: 'The items to come.' },
)

export const PrefetchAnswer = Type.Object(
  {
    model: Type.String({ description: 'name@version of the bundle.' }),
    kv: Type.Optional(Kv),
    warnings,
  },
  { description: 'With wait: the K/V is there. Without: it is being made, and `kv` is absent.' },
)

const Event = Type.Object({
  item: Type.String(),
  time: Type.Integer(),
  actions: Type.Optional(Type.Array(Type.String())),
  features: Type.Optional(Type.Record(Type.String(), Type.Unknown())),
})

export const EventsAnswer = Type.Object(
  {
    stored: Type.Integer({ description: 'Events that were not there before.' }),
    duplicates: Type.Integer({ description: 'Events that were there already, or came twice.' }),
    total: Type.Integer({ description: 'Events of the user now.' }),
    trimmed: Type.Integer({ description: 'The oldest ones, which had to go.' }),
  },
  { description: 'All events are stored.' },
)

export const UserAnswer = Type.Object(
  {
    user: Type.Object({ id: Type.String() }),
    count: Type.Integer(),
    firstTime: Type.Optional(Type.Integer({ description: 'Absent without events.' })),
    lastTime: Type.Optional(Type.Integer()),
    kvTokens: Type.Object(
      {
        memory: Type.Integer({ description: 'In this process.' }),
        redis: Type.Optional(
          Type.Integer({ description: 'In Redis; absent without it, or when it did not say.' }),
        ),
      },
      { description: 'How many history tokens have K/V, by tier.' },
    ),
    events: Type.Array(Event, { description: 'The stored history, oldest first.' }),
  },
  { description: 'What is kept of a user; nothing of one that nobody knows.' },
)

export const ModelList = Type.Object(
  {
    models: Type.Array(
      Type.Object({
        name: Type.String(),
        version: Type.String({ description: 'Content hash of the bundle.' }),
        tasks: Type.Array(Type.Object({ name: Type.String(), type: Type.String() })),
        actions: Type.Array(Type.String(), { description: 'Action types that events may name.' }),
        weights: Type.Optional(
          Type.Record(Type.String(), Type.Number(), {
            description: 'Weight of each task in the score where a request gives none.',
          }),
        ),
        exampleItems: Type.Array(Type.String(), {
          description: 'Some item ids that the model knows, to try it with.',
        }),
        maxTokens: Type.Integer(),
        precision: Type.String(),
        engine: Type.String(),
        microBatchSize: Type.Integer(),
        slackEvents: Type.Integer({
          description: 'How many events the window of a full history moves at a time.',
        }),
        retrieval: Type.Optional(
          Type.Object(
            {
              items: Type.Integer({ description: 'Of the candidate list.' }),
              chunkItems: Type.Integer({ description: 'The most of them in one run.' }),
            },
            { description: 'Only of models with a retrieval head.' },
          ),
        ),
        state: Type.Union([Type.Literal('ready'), Type.Literal('draining')]),
        labels: Type.Array(Type.String(), {
          description: 'stable, canary, shadow; `model` of a request may be `name@label`.',
        }),
      }),
    ),
  },
  {
    description:
      'Models that are ready, the one that a request without `model` gets first; empty while loading.',
  },
)
