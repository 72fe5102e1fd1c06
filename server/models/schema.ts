import Type from 'typebox'

const closed = { additionalProperties: false }

const VersionText = Type.String({
  pattern: '^[0-9a-f]{16}$',
  description: 'Content hash of the bundle.',
  examples: ['5dfb06e925fd8571'],
})
const Percent = (description: string) => Type.Number({ minimum: 0, maximum: 100, description })
const wait = Type.Optional(
  Type.Boolean({ description: 'Answer when it is done, instead of 202 at once.' }),
)
const rampSec = Type.Optional(
  Type.Number({
    minimum: 0,
    maximum: 86_400,
    description:
      'Seconds over which the users move, so that their K/V is not made all at once; 0 = all now; absent = as the server is configured.',
  }),
)

export const LoadRequest = Type.Object(
  {
    bundle: Type.String({
      minLength: 1,
      maxLength: 4096,
      description: 'A subfolder of --models-dir, or a folder that --bundle names.',
      examples: ['kuairand-2'],
    }),
    wait,
  },
  closed,
)
export const PromoteRequest = Type.Object({ version: VersionText, rampSec }, closed)
export const CanaryRequest = Type.Object(
  { version: VersionText, weightPercent: Percent('Of the users, always the same ones.') },
  closed,
)
export const ShadowRequest = Type.Object(
  { version: VersionText, sharePercent: Percent('Of the requests, chosen at random.') },
  closed,
)

const ModelVersion = Type.Object({
  version: Type.String(),
  state: Type.Union(
    (['loading', 'warming', 'ready', 'draining', 'failed'] as const).map((state) =>
      Type.Literal(state),
    ),
  ),
  reason: Type.Optional(Type.String({ description: 'Why it failed.' })),
  labels: Type.Array(Type.String()),
  bundle: Type.String({ description: 'Where its bundle is, or was.' }),
  isOrphan: Type.Boolean({
    description: 'Its folder is gone: it serves on until another version is promoted.',
  }),
  inFlight: Type.Integer({ description: 'Rankings and prefetches that use it now.' }),
  kvBytes: Type.Optional(Type.Integer({ description: 'K/V in this process.' })),
  since: Type.String({ description: 'When it got into this state.' }),
})

export const AdminModel = Type.Object(
  {
    name: Type.String(),
    isDefault: Type.Boolean({ description: 'Requests that name no model get it.' }),
    stable: Type.Optional(Type.String()),
    former: Type.Optional(Type.String({ description: 'Where a rollback leads.' })),
    movedPercent: Type.Optional(
      Type.Number({ description: 'Of the users, while a promotion moves them.' }),
    ),
    canary: Type.Optional(
      Type.Object({ version: Type.String(), weightPercent: Type.Number() }, closed),
    ),
    shadow: Type.Optional(
      Type.Object({ version: Type.String(), sharePercent: Type.Number() }, closed),
    ),
    versions: Type.Array(ModelVersion),
  },
  { description: 'A model with all its versions.' },
)

export const AdminModelList = Type.Object(
  {
    models: Type.Array(AdminModel),
    unreadable: Type.Array(
      Type.Object({ bundle: Type.String(), reason: Type.String(), since: Type.String() }),
      { description: 'Bundles that do not even say what they are.' },
    ),
  },
  { description: 'All models of this process.' },
)
