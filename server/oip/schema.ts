import Type, { type Static } from 'typebox'
import { MAX_AXES } from './tensors.js'

/** Bodies of the Open Inference Protocol v2. Unknown fields and parameters are let pass, as it says. */

const Parameters = Type.Optional(
  Type.Object({
    binary_data_size: Type.Optional(
      Type.Integer({ minimum: 0, description: 'Its data are so many bytes behind the JSON.' }),
    ),
    shared_memory_region: Type.Optional(Type.Never({ description: 'Not supported.' })),
  }),
)

const Shape = Type.Array(Type.Integer({ minimum: 0 }), { maxItems: MAX_AXES })

export const InferRequest = Type.Object(
  {
    id: Type.Optional(Type.String({ maxLength: 256 })),
    parameters: Type.Optional(
      Type.Object({
        binary_data_output: Type.Optional(
          Type.Boolean({ description: 'For outputs that do not say.' }),
        ),
      }),
    ),
    inputs: Type.Array(
      Type.Object({
        name: Type.String({ maxLength: 128 }),
        datatype: Type.String({ maxLength: 16, examples: ['BYTES', 'INT64'] }),
        shape: Shape,
        data: Type.Optional(Type.Array(Type.Unknown(), { description: 'Flat, or nested.' })),
        parameters: Parameters,
      }),
      { minItems: 1, maxItems: 16 },
    ),
    outputs: Type.Optional(
      Type.Array(
        Type.Object({
          name: Type.String({ maxLength: 128 }),
          parameters: Type.Optional(Type.Object({ binary_data: Type.Optional(Type.Boolean()) })),
        }),
        { maxItems: 128, description: 'Which to answer; absent = all.' },
      ),
    ),
  },
  {
    examples: [
      {
        inputs: [
          { name: 'user_id', datatype: 'BYTES', shape: [1], data: ['u1'] },
          { name: 'candidates', datatype: 'BYTES', shape: [2], data: ['42', '43'] },
        ],
      },
    ],
  },
)

export type InferRequest = Static<typeof InferRequest>

const Metadata = Type.Object({
  name: Type.String(),
  datatype: Type.String(),
  shape: Type.Array(Type.Integer()),
})

export const ModelMetadata = Type.Object({
  name: Type.String(),
  versions: Type.Array(Type.String()),
  platform: Type.String(),
  inputs: Type.Array(Metadata),
  outputs: Type.Array(Metadata),
})

export const InferAnswer = Type.Object({
  model_name: Type.String(),
  model_version: Type.String(),
  id: Type.Optional(Type.String()),
  outputs: Type.Array(
    Type.Object({
      name: Type.String(),
      datatype: Type.String(),
      shape: Type.Array(Type.Integer()),
      data: Type.Optional(Type.Array(Type.Number())),
      parameters: Type.Optional(Type.Object({ binary_data_size: Type.Integer() })),
    }),
  ),
})
