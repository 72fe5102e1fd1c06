import { writeFileSync } from 'node:fs'
import type { FunctionProto } from 'onnx-buf'
import type { OpOptions } from '../../export/nodes.js'
import { type Dim, onnxGraph } from '../../export/onnx.js'
import type { Bundle } from '../../manifest.js'
import { findLibrary } from './library.js'
import { hostMemory } from './memory.js'
import { loadOrt } from './ort.js'
import { createScope } from './scope.js'
import { createEnv, createSessions } from './sessions.js'
import { ELEMENT } from './tensor.js'

/** A graph of one function call. */
export type OpGraph = {
  readonly function: FunctionProto
  readonly attributes: OpOptions['attributes']
  /** In the function's order; those with `constant` are initializers. */
  readonly inputs: readonly {
    readonly name: string
    readonly type: 'float32' | 'bfloat16' | 'uint16' | 'int64'
    readonly dims: readonly Dim[]
    readonly constant?: Float32Array
  }[]
  readonly outputDims: readonly Dim[]
}
export type OpTensor = {
  /** bfloat16 as its bits; tiles of it are uint16. */
  readonly data: Float32Array | Uint16Array | BigInt64Array
  readonly dims: readonly number[]
}
export type OpInputs = { readonly [name: string]: OpTensor }

/** One function as a session of its own, for parity tests and benches of kernels. */
export type OpSession = {
  /** What the session runs, as operator types. */
  readonly operators: readonly string[]
  /** A run that can be repeated, into `out`; several may go at once. */
  bind(
    inputs: OpInputs,
    outDims: readonly number[],
  ): { readonly out: Float32Array; run(): Promise<void>; release(): void }
  close(): Promise<void>
}

/**
 * `folder`, an existing one, gets the graph's files; `options.library`: custom ops that replace the function.
 * @throws {RankError} MODEL_CONTRACT when the graph does not load
 */
export async function openOp(
  folder: string,
  graph: OpGraph,
  options: {
    readonly library: string | undefined
    readonly threads: number
    /** Threads wait busily for work: quick on idle cores. */
    readonly spin: boolean
  },
): Promise<OpSession> {
  const ort = loadOrt(findLibrary())
  const initializers = new Map(
    graph.inputs.flatMap((input) => (input.constant === undefined ? [] : [[input.name, input]])),
  )
  const weights = {
    file: 'weights.bin',
    entry(name: string) {
      const dims = (initializers.get(name)?.dims ?? []).map(Number)
      const length = 4 * dims.reduce((product, dim) => product * dim, 1)
      return { dims, type: 'float32' as const, offset: 0, length }
    },
  }
  const model = onnxGraph('op', weights, [graph.function], (g) => {
    const names = graph.inputs.map(({ name, type, dims, constant }) =>
      constant === undefined ? g.input(name, type, dims) : g.weight(name),
    )
    const { function: callee, attributes } = graph
    const called = { domain: 'peregrine', ...(attributes && { attributes }) } as const
    g.output('out', g.op(callee.name, names, called), 'float32', graph.outputDims)
  })
  writeFileSync(`${folder}/op.onnx`, model.bytes)
  // Looked for, never read: the session gets the constants' values from elsewhere, as bundles' do.
  writeFileSync(`${folder}/weights.bin`, '')
  const contract = { file: 'op.onnx', inputs: model.inputs, outputs: model.outputs }
  // The parts of a bundle that sessions look at.
  const bundle = { folder, manifest: { graphs: { score: contract } } } as unknown as Bundle
  const env = createEnv(ort)
  const host = hostMemory(ort)
  const constants = createScope(ort, host)
  const free = () => {
    constants.end()
    host.close()
    ort.ReleaseEnv(env)
  }
  const values = new Map(
    [...initializers].map(([name, { constant = new Float32Array(), dims }]) => [
      name,
      constants.tensor(constant, dims.map(Number)),
    ]),
  )
  const types = new Map(graph.inputs.map(({ name, type }) => [name, ELEMENT[type]]))
  const shared = { values, bytes: 0, async release() {} }
  const { sessions, release } = await createSessions(
    { ort, env, bundle, weights: shared, kernels: options.library },
    ['score'],
    { intraOpThreads: options.threads, spin: options.spin },
  ).catch((error: unknown) => {
    free()
    throw error
  })
  return {
    operators: [...sessions.score.placement.values()].flat().map((op) => op.split(' ')[0] ?? ''),
    bind(inputs, outDims) {
      const tensors = createScope(ort, host)
      const runOptions = ort.CreateRunOptions()
      const out = new Float32Array(outDims.reduce((product, dim) => product * dim, 1))
      const given = Object.fromEntries(
        Object.entries(inputs).map(([name, { data, dims }]) => [
          name,
          data instanceof Uint16Array
            ? tensors.tensorOf(
                new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
                dims,
                types.get(name) ?? ELEMENT.bfloat16,
              )
            : tensors.tensor(data, dims),
        ]),
      )
      const results = { out: tensors.tensor(out, outDims) }
      return {
        out,
        run: () => sessions.score.run(given, results, runOptions),
        release() {
          tensors.end()
          ort.ReleaseRunOptions(runOptions)
        },
      }
    },
    async close() {
      await release()
      free()
    },
  }
}
