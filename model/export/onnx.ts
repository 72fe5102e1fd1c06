import { create, toBinary } from '@bufbuild/protobuf'
import {
  type FunctionProto,
  FunctionProtoSchema,
  GraphProtoSchema,
  ModelProtoSchema,
  OperatorSetIdProtoSchema,
  type TensorProto,
  TensorProto_DataLocation,
  TensorProtoSchema,
  TensorShapeProto_DimensionSchema,
  TypeProtoSchema,
  type ValueInfoProto,
  ValueInfoProtoSchema,
} from 'onnx-buf'
import {
  type Attribute,
  createNodes,
  DATA_TYPE,
  type NodeBuilder,
  type TensorType,
} from './nodes.js'
import type { WeightFile } from './weight-file.js'

const IR_VERSION = 9n
const OPSETS = [
  ['', 18n],
  ['com.microsoft', 1n],
  ['peregrine', 1n],
] as const

/** A dimension: fixed, or a name that stands for a length known at run time. */
export type Dim = number | string

/** A model-local function of domain `peregrine`; `build` gives the names of its outputs. */
export function onnxFunction(
  name: string,
  inputs: readonly string[],
  attributes: readonly string[],
  build: (nodes: NodeBuilder) => string | readonly string[],
): FunctionProto {
  const body = createNodes()
  const built = build(body)
  const results = typeof built === 'string' ? [['out', built]] : built.map((y, i) => [`out${i}`, y])
  for (const [output = '', y = ''] of results) body.alias(y, output)
  return create(FunctionProtoSchema, {
    name,
    domain: 'peregrine',
    input: [...inputs],
    output: results.map(([output = '']) => output),
    attribute: [...attributes],
    node: body.nodes,
    opsetImport: opsets(['', 'com.microsoft']),
  })
}

type GraphValue = {
  readonly name: string
  readonly type: TensorType
  readonly dims: readonly Dim[]
}

export type GraphBuilder = NodeBuilder & {
  input(name: string, type: TensorType, dims: readonly Dim[]): string
  output(name: string, from: string, type: TensorType, dims: readonly Dim[]): void
  /** An initializer that lies in the weight file. */
  weight(name: string): string
  /** What that is stored as. */
  weightType(name: string): TensorType
  /** Calls a function without attributes, which then travels in the file. */
  call(body: FunctionProto, inputs: readonly string[]): string
  /** The same for all its outputs, and with attributes. */
  callN(
    body: FunctionProto,
    inputs: readonly string[],
    attributes: { readonly [name: string]: Attribute },
  ): string[]
}

/** One graph of the bundle. `inputs` and `outputs` are the contract that the manifest states. */
export type OnnxGraph = {
  readonly bytes: Uint8Array
  readonly inputs: readonly GraphValue[]
  readonly outputs: readonly GraphValue[]
}

/** Builds one graph; its weights are references into `weights`, its `functions` travel in the file. */
export function onnxGraph(
  name: string,
  weights: WeightFile,
  functions: readonly FunctionProto[],
  build: (graph: GraphBuilder) => void,
): OnnxGraph {
  const body = createNodes()
  const inputs: GraphValue[] = []
  const outputs: GraphValue[] = []
  const used = new Map<string, TensorProto>()
  const called = new Map<string, FunctionProto>()
  build({
    ...body,
    input(inputName, type, dims) {
      inputs.push({ name: inputName, type, dims })
      return inputName
    },
    output(outputName, from, type, dims) {
      body.alias(from, outputName)
      outputs.push({ name: outputName, type, dims })
    },
    weight(weightName) {
      if (!used.has(weightName)) used.set(weightName, externalTensor(weightName, weights))
      return weightName
    },
    weightType: (weightName) => weights.entry(weightName).type,
    call(callee, names) {
      called.set(callee.name, callee)
      return body.op(callee.name, names, { domain: 'peregrine' })
    },
    callN(callee, names, attributes) {
      called.set(callee.name, callee)
      return body.opN(callee.name, names, callee.output.length, { domain: 'peregrine', attributes })
    },
  })
  const model = create(ModelProtoSchema, {
    irVersion: IR_VERSION,
    producerName: 'peregrine',
    opsetImport: opsets(OPSETS.map(([domain]) => domain)),
    graph: create(GraphProtoSchema, {
      name,
      node: body.nodes,
      initializer: [...used.values()],
      input: inputs.map(valueInfo),
      output: outputs.map(valueInfo),
    }),
    functions: [...functions, ...called.values()],
  })
  return { bytes: toBinary(ModelProtoSchema, model), inputs, outputs }
}

function opsets(domains: readonly string[]) {
  return OPSETS.filter(([domain]) => domains.includes(domain)).map(([domain, version]) =>
    create(OperatorSetIdProtoSchema, { domain, version }),
  )
}

function externalTensor(name: string, weights: WeightFile): TensorProto {
  const { dims, type, offset, length } = weights.entry(name)
  const entries = { location: weights.file, offset: String(offset), length: String(length) }
  return create(TensorProtoSchema, {
    name,
    dims: dims.map(BigInt),
    dataType: DATA_TYPE[type],
    dataLocation: TensorProto_DataLocation.EXTERNAL,
    externalData: Object.entries(entries).map(([key, value]) => ({ key, value })),
  })
}

function valueInfo({ name, type, dims }: GraphValue): ValueInfoProto {
  return create(ValueInfoProtoSchema, {
    name,
    type: create(TypeProtoSchema, {
      value: {
        case: 'tensorType',
        value: {
          elemType: DATA_TYPE[type],
          shape: {
            dim: dims.map((dim) =>
              create(TensorShapeProto_DimensionSchema, {
                value:
                  typeof dim === 'number'
                    ? { case: 'dimValue', value: BigInt(dim) }
                    : { case: 'dimParam', value: dim },
              }),
            ),
          },
        },
      },
    }),
  })
}
