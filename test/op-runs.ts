// One op, its function's body or a library's kernel in its place, run into memory full of NaN.
import { toBf16 } from '../model/bf16.js'
import {
  type OpGraph,
  type OpInputs,
  type OpTensor,
  openOp,
} from '../model/engine/capi/op-session.js'
import { type Scope, tempFolder } from './fixtures.js'

/** `library`: custom ops that replace the function. Several runs may go at once. */
export async function openRuns(
  scope: Scope,
  graph: OpGraph,
  { library }: { readonly library?: string },
) {
  const session = await openOp(tempFolder(scope), graph, { library, threads: 2, spin: false })
  scope.after(session.close)
  return {
    operators: session.operators,
    async run(inputs: OpInputs, outDims: readonly number[]): Promise<Float32Array> {
      const { out, run, release } = session.bind(inputs, outDims)
      out.fill(Number.NaN)
      try {
        await run()
        return out
      } finally {
        release()
      }
    },
  }
}

/** A graph that takes the K and V of a history in bfloat16. */
export function withBf16Kv(graph: OpGraph): OpGraph {
  const inputs = graph.inputs.map((input) =>
    isKv(input.name) ? { ...input, type: 'bfloat16' as const } : input,
  )
  return { ...graph, inputs }
}

/** What such a graph is given; K and V are rounded. */
export function roundedKv(inputs: OpInputs): OpInputs {
  const entries = Object.entries(inputs).map(([name, tensor]): [string, OpTensor] => {
    const { data, dims } = tensor
    if (!isKv(name) || !(data instanceof Float32Array)) return [name, tensor]
    const bits = toBf16(data)
    return [name, { data: new Uint16Array(bits.buffer), dims }]
  })
  return Object.fromEntries(entries)
}

/** Of a history. */
export function isKv(name: string): boolean {
  return /^(past_)?[kv]$/.test(name)
}
