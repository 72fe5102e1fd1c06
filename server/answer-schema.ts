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
  },
  { description: 'What went wrong.' },
)

const Kv = Type.Object(
  {
    state: Type.Union(
      [Type.Literal('hit'), Type.Literal('stale'), Type.Literal('miss'), Type.Literal('none')],
      {
        description:
          "Where the history's K/V came from; stale: a prefix was cached; none: nothing was kept.",
      },
    ),
    reusedTokens: Type.Integer(),
    prefilledTokens: Type.Integer(),
  },
  { description: 'What the K/V cache did.' },
)

const stages = {
  sequenceMs: ms('history to tokens'),
  historyMs: ms('cache lookup, prefill or append, and the wait for a worker'),
  scoreMs: ms('scoring the micro-batches'),
  headsMs: ms('predictions, value formula, sorting'),
  totalMs: ms('all of it'),
}

const Item = Type.Object({
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
    items: Type.Array(Item, { description: 'Best first.' }),
    kv: Kv,
    timings: Type.Object(stages),
    warnings: Type.Array(
      Type.Object({ code: Type.String(), message: Type.String(), count: Type.Integer() }),
      { description: 'What the caller should know but did not stop the ranking.' },
    ),
    partial: Type.Optional(
      Type.Literal(true, { description: 'The deadline came before every candidate was scored.' }),
    ),
    explain: Type.Optional(
      Type.Object({
        kv: Kv,
        timings: Type.Object({ parseMs: ms('JSON and schema'), ...stages }),
        historyTokens: Type.Integer(),
        truncatedEvents: Type.Integer(),
        candidates: Type.Integer(),
        scored: Type.Integer(),
        microBatches: Type.Integer(),
        microBatchSize: Type.Integer(),
        retries: Type.Integer({ description: 'Runs lost to a crashed worker.' }),
      }),
    ),
  },
  { description: 'The ranking.' },
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
      }),
    ),
  },
  { description: 'Models that are ready; empty while loading.' },
)
