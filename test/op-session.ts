// One op as a graph of its own: its function's body, or a library's kernel in its place.
import { writeFileSync } from 'node:fs'
import type { FunctionProto } from 'onnx-buf'
import { findLibrary } from '../model/engine/capi/library.js'
import { hostMemory } from '../model/engine/capi/memory.js'
import { loadOrt } from '../model/engine/capi/ort.js'
import { createScope } from '../model/engine/capi/scope.js'
import { createEnv, createSessions } from '../model/engine/capi/sessions.js'
import type { OpOptions } from '../model/export/onnx.js'
import { type Dim, onnxGraph, type TensorType } from '../model/export/onnx.js'
import type { Bundle } from '../model/manifest.js'
import { type Scope, tempFolder } from './fixtures.js'

export type OpGraph = {
  readonly function: FunctionProto
  readonly attributes: OpOptions['attributes']
  /** Inputs in the function's order, with their shapes by name; those with `constant` are initializers. */
  readonly inputs: readonly {
    readonly name: string
    readonly type: 'float32' | 'int64'
    readonly dims: readonly Dim[]
    readonly constant?: Float32Array
  }[]
  readonly outputDims: readonly Dim[]
}
export type OpTensor = {
  readonly data: Float32Array | BigInt64Array
  readonly dims: readonly number[]
}

/** `library`: custom ops that replace the function. Several runs may go at once. */
export async function openOp(
  scope: Scope,
  graph: OpGraph,
  { library, threads = 2 }: { readonly library?: string | undefined; readonly threads?: number },
) {
  const ort = loadOrt(findLibrary())
  const env = createEnv(ort)
  const host = hostMemory(ort)
  const folder = tempFolder(scope)
  const constants = createScope(ort, host)
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
      constant === undefined ? g.input(name, type satisfies TensorType, dims) : g.weight(name),
    )
    const out = g.op(graph.function.name, names, {
      domain: 'peregrine',
      ...(graph.attributes === undefined ? {} : { attributes: graph.attributes }),
    })
    g.output('out', out, 'float32', graph.outputDims)
  })
  writeFileSync(`${folder}/op.onnx`, model.bytes)
  // Looked for, never read: the sessions get the constants' values from elsewhere, as bundles' do.
  writeFileSync(`${folder}/weights.bin`, '')
  const contract = { file: 'op.onnx', inputs: model.inputs, outputs: model.outputs }
  // The parts of a bundle that sessions look at.
  const bundle = { folder, manifest: { graphs: { score: contract } } } as unknown as Bundle
  const values = new Map(
    [...initializers].map(([name, { constant, dims }]) => [
      name,
      constants.tensor(constant ?? new Float32Array(0), dims.map(Number)),
    ]),
  )
  const shared = { values, bytes: 0, release() {} }
  const { sessions, release } = await createSessions(
    { ort, env, bundle, weights: shared, kernels: library },
    ['score'],
    { intraOpThreads: threads, spin: false },
  )
  scope.after(() => {
    release()
    constants.end()
    host.close()
    ort.ReleaseEnv(env)
  })
  return {
    /** What the session runs, as operator types. */
    operators: [...sessions.score.placement.values()].flat().map((op) => op.split(' ')[0]),
    /** The output, which was full of NaN before. */
    async run(inputs: { readonly [name: string]: OpTensor }, outDims: readonly number[]) {
      const tensors = createScope(ort, host)
      const options = ort.CreateRunOptions()
      try {
        const out = new Float32Array(outDims.reduce((product, dim) => product * dim, 1)).fill(NaN)
        const given = Object.entries(inputs).map(([name, { data, dims }]) => [
          name,
          tensors.tensor(data, dims),
        ])
        await sessions.score.run(
          Object.fromEntries(given),
          { out: tensors.tensor(out, outDims) },
          options,
        )
        return out
      } finally {
        tensors.end()
        ort.ReleaseRunOptions(options)
      }
    },
  }
}
