import { fromBinary, toBinary } from '@bufbuild/protobuf'
import { ModelProtoSchema, type NodeProto, TensorProto_DataType } from 'onnx-buf'
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

/**
 * The graph with K and V, as inputs and as outputs, in bfloat16: half the memory. Bundles say float32, which is
 * what their functions read and all that engine `node` can carry.
 */
export function withBf16Kv(bytes: Uint8Array): Uint8Array {
  const model = fromBinary(ModelProtoSchema, bytes)
  const { input = [], output = [], node = [] } = model.graph ?? {}
  for (const { name, type } of [...input, ...output]) {
    if (isKv(name) && type?.value.case === 'tensorType') {
      type.value.value.elemType = TensorProto_DataType.BFLOAT16
    }
  }
  for (const each of node) if (each.output.some(isKv)) roundToBf16(each)
  return toBinary(ModelProtoSchema, model)
}

/** What a graph's contract is then. */
export function bf16Contract(contract: GraphContract): GraphContract {
  const kept = (values: readonly GraphValue[]) =>
    values.map((value) => (isKv(value.name) ? { ...value, type: 'bfloat16' } : value))
  return { ...contract, inputs: kept(contract.inputs), outputs: kept(contract.outputs) }
}

/** What gives an output its name is an Identity (export/onnx.ts). */
function roundToBf16(node: NodeProto): void {
  if (node.opType !== 'Identity') throw new Error(`K/V is the output of ${node.opType}`)
  node.opType = TO_BF16
  node.domain = 'peregrine'
}

/** Of a history: k.0, past_v.1, … */
function isKv(name: string): boolean {
  return /^(past_)?[kv]\.\d+$/.test(name)
}
