import { create, fromBinary, toBinary } from '@bufbuild/protobuf'
import {
  AttributeProto_AttributeType,
  AttributeProtoSchema,
  ModelProtoSchema,
  type NodeProto,
  TensorProto_DataType,
  TensorShapeProto_DimensionSchema,
  TensorShapeProtoSchema,
} from 'onnx-buf'
import type { GraphContract, GraphValue } from '../../manifest.js'
import { TO_BF16 } from '../codec/graphs.js'

/** The functions whose kernels take K/V as bfloat16. */
const READERS: ReadonlySet<string> = new Set(['HstuAttention', 'HstuCausalAttention'])

/**
 * Whether a float32 graph's K/V is read by kernels alone, which round it to bfloat16 anyway: keeping it so
 * changes no score.
 */
export function canTakeBf16Kv(graph: Uint8Array): boolean {
  const nodes = fromBinary(ModelProtoSchema, graph).graph?.node ?? []
  return nodes.every(({ opType, input }) => READERS.has(opType) || !input.some(isKv))
}

/** As rows in bfloat16, or as tiles of so many heads, whose type says that they are no rows of anything: uint16. */
export type Bf16Kv = 'rows' | { readonly heads: number }

/** Another op of those kernels: new tokens' K or V into the tiles of their history. */
const TO_TILES = 'HstuKvTiles'
/** Of how many tokens tiles are; a graph's input wherever K/V is one. */
const TIMES = 'times'
/** Where the kernel of candidates' attention looks for it. */
const TIMES_INPUT = 4

/**
 * The graph with K and V, as inputs and as outputs, in bfloat16: half the memory. Bundles say float32, which is
 * what their functions read and all that engine `node` can carry.
 */
export function withBf16Kv(bytes: Uint8Array, kv: Bf16Kv): Uint8Array {
  const model = fromBinary(ModelProtoSchema, bytes)
  const { input = [], output = [], node = [] } = model.graph ?? {}
  for (const { name, type } of [...input, ...output]) {
    if (!isKv(name) || type?.value.case !== 'tensorType') continue
    const tensor = type.value.value
    if (kv === 'rows') {
      tensor.elemType = TensorProto_DataType.BFLOAT16
      continue
    }
    tensor.elemType = TensorProto_DataType.UINT16
    const width = tensor.shape?.dim[1]?.value
    if (width?.case !== 'dimValue') throw new Error(`${name} has no width`)
    tensor.shape = create(TensorShapeProtoSchema, {
      dim: tileDims(Number(width.value), kv.heads).map((dim) =>
        create(
          TensorShapeProto_DimensionSchema,
          typeof dim === 'number'
            ? { value: { case: 'dimValue', value: BigInt(dim) } }
            : { value: { case: 'dimParam', value: dim } },
        ),
      ),
    })
  }
  for (const each of node) {
    if (each.output.some(isKv)) kv === 'rows' ? roundToBf16(each) : writeTiles(each)
    else if (kv !== 'rows' && READERS.has(each.opType)) readTiles(each)
  }
  return toBinary(ModelProtoSchema, model)
}

/** What a graph's contract is then. */
export function bf16Contract(contract: GraphContract, kv: Bf16Kv): GraphContract {
  const tiled = (value: GraphValue, heads: number) => {
    const dims = tileDims(Number(value.dims[1]), heads)
    return { ...value, type: 'uint16', dims }
  }
  const kept = (values: readonly GraphValue[]) =>
    values.map((value) => {
      if (!isKv(value.name)) return value
      return kv === 'rows' ? { ...value, type: 'bfloat16' } : tiled(value, kv.heads)
    })
  return { ...contract, inputs: kept(contract.inputs), outputs: kept(contract.outputs) }
}

const tileDims = (width: number, heads: number) => [heads, 'capacity', width / heads]

/** What gives an output its name is an Identity (export/onnx.ts). */
function roundToBf16(node: NodeProto): void {
  if (node.opType !== 'Identity') throw new Error(`K/V is the output of ${node.opType}`)
  node.opType = TO_BF16
  node.domain = 'peregrine'
}

/** New tokens' K or V go behind the past's, whose tiles are those of all tokens then. */
function writeTiles(node: NodeProto): void {
  const [from, name] = [node.input[0], node.output[0]]
  if (node.opType !== 'Identity' || from === undefined || name === undefined) {
    throw new Error(`K/V is the output of ${node.opType}`)
  }
  node.opType = TO_TILES
  node.domain = 'peregrine'
  node.input = [from, `past_${name}`, TIMES]
  node.attribute = [
    create(AttributeProtoSchema, {
      name: 'is_key',
      type: AttributeProto_AttributeType.INT,
      i: name.startsWith('k.') ? 1n : 0n,
    }),
  ]
}

/** Attention over tiles: of new tokens once theirs are written, of candidates with the number of tokens. */
function readTiles(node: NodeProto): void {
  if (!node.input.some(isKv)) return
  node.input = node.input.map((name) => (isKv(name) ? name.replace(/^past_/, '') : name))
  if (node.opType !== 'HstuAttention') return
  while (node.input.length < TIMES_INPUT) node.input.push('')
  node.input.push(TIMES)
}

/** Of a history: k.0, past_v.1, … */
function isKv(name: string): boolean {
  return /^(past_)?[kv]\.\d+$/.test(name)
}
