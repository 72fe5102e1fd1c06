import { create } from '@bufbuild/protobuf'
import {
  AttributeProtoSchema,
  AttributeProto_AttributeType as AttributeType,
  TensorProto_DataType as DataType,
  type NodeProto,
  NodeProtoSchema,
  type TensorProto,
  TensorProtoSchema,
} from 'onnx-buf'

export type TensorType =
  | 'float32'
  | 'float16'
  | 'bfloat16'
  | 'float64'
  | 'int8'
  | 'uint16'
  | 'int32'
  | 'int64'

/** ONNX's code of each type. */
export const DATA_TYPE: Record<TensorType, DataType> = {
  float32: DataType.FLOAT,
  float16: DataType.FLOAT16,
  bfloat16: DataType.BFLOAT16,
  float64: DataType.DOUBLE,
  int8: DataType.INT8,
  uint16: DataType.UINT16,
  int32: DataType.INT32,
  int64: DataType.INT64,
}

/** An attribute value; `{ref}` reads the enclosing function's attribute of that name. */
export type Attribute =
  | number
  | bigint
  | readonly bigint[]
  | { readonly ref: string; readonly type: 'float' | 'int' }

export type OpOptions = {
  readonly domain?: 'com.microsoft' | 'peregrine'
  readonly attributes?: { readonly [name: string]: Attribute }
  /** Optional outputs that nobody reads, by index: their names are empty. */
  readonly omitted?: readonly number[]
}

/** Builds the nodes of a graph or of a function body; values are named after the op that makes them. */
export type NodeBuilder = {
  /** Adds a node with one output and gives that output's name. */
  op(type: string, inputs: readonly string[], options?: OpOptions): string
  /** Adds a node with several outputs. */
  opN(type: string, inputs: readonly string[], outputs: number, options?: OpOptions): string[]
  /** Renames: adds an Identity from `from` to the given name. */
  alias(from: string, to: string): void
  /** A constant vector of int64; `scalar` gives rank 0. */
  ints(values: readonly number[]): string
  scalar(value: number, type: TensorType): string
}

export function createNodes(): NodeBuilder & { readonly nodes: NodeProto[] } {
  const nodes: NodeProto[] = []
  const constants = new Map<string, string>()
  const counts = new Map<string, number>()
  const fresh = (type: string) => {
    const n = counts.get(type) ?? 0
    counts.set(type, n + 1)
    return `${type}_${n}`
  }
  const add = (type: string, inputs: readonly string[], outputs: string[], options: OpOptions) => {
    nodes.push(
      create(NodeProtoSchema, {
        opType: type,
        name: outputs[0] ?? '',
        input: [...inputs],
        output: outputs,
        domain: options.domain ?? '',
        attribute: Object.entries(options.attributes ?? {}).map(([name, value]) =>
          attribute(name, value),
        ),
      }),
    )
  }
  const constant = (key: string, tensor: TensorProto) => {
    const known = constants.get(key)
    if (known !== undefined) return known
    const name = fresh('Constant')
    nodes.push(
      create(NodeProtoSchema, {
        opType: 'Constant',
        name,
        output: [name],
        attribute: [
          create(AttributeProtoSchema, { name: 'value', type: AttributeType.TENSOR, t: tensor }),
        ],
      }),
    )
    constants.set(key, name)
    return name
  }
  return {
    nodes,
    op(type, inputs, options = {}) {
      const output = fresh(type)
      add(type, inputs, [output], options)
      return output
    },
    opN(type, inputs, outputs, options = {}) {
      const base = fresh(type)
      const names = Array.from({ length: outputs }, (_, i) =>
        options.omitted?.includes(i) ? '' : `${base}_${i}`,
      )
      add(type, inputs, names, options)
      return names
    },
    alias(from, to) {
      add('Identity', [from], [to], {})
    },
    ints(values) {
      const data = BigInt64Array.from(values, BigInt)
      return constant(
        `ints ${values.join(' ')}`,
        create(TensorProtoSchema, {
          dims: [BigInt(values.length)],
          dataType: DataType.INT64,
          rawData: new Uint8Array(data.buffer),
        }),
      )
    },
    scalar(value, type) {
      return constant(
        `${type} ${value}`,
        create(TensorProtoSchema, { dataType: DATA_TYPE[type], ...scalarData(value, type) }),
      )
    },
  }
}

function scalarData(value: number, type: TensorType) {
  switch (type) {
    case 'float32':
      return { floatData: [value] }
    case 'float64':
      return { doubleData: [value] }
    case 'int32':
      return { int32Data: [value] }
    case 'int64':
      return { int64Data: [BigInt(value)] }
    case 'float16':
    case 'bfloat16':
    case 'uint16':
    case 'int8':
      throw new Error(`a ${type} constant is a Cast of a wider one`)
  }
}

function attribute(name: string, value: Attribute) {
  if (typeof value === 'number') {
    return create(AttributeProtoSchema, { name, type: AttributeType.FLOAT, f: value })
  }
  if (typeof value === 'bigint') {
    return create(AttributeProtoSchema, { name, type: AttributeType.INT, i: value })
  }
  if ('ref' in value) {
    const type = value.type === 'float' ? AttributeType.FLOAT : AttributeType.INT
    return create(AttributeProtoSchema, { name, refAttrName: value.ref, type })
  }
  return create(AttributeProtoSchema, { name, type: AttributeType.INTS, ints: [...value] })
}
