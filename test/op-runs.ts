// One op, its function's body or a library's kernel in its place, run into memory full of NaN.
import { type OpGraph, type OpInputs, openOp } from '../model/engine/capi/op-session.js'
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
