import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { fromBinary } from '@bufbuild/protobuf'
import { ModelProtoSchema } from 'onnx-buf'
import { exportModel, smallConfig } from '../../test/fixtures.js'

describe('float16 graphs', () => {
  test('have nothing in score and rank that a replayed CUDA graph could find overwritten', (t) => {
    for (const block of [{}, { rab: false, combine: 'concat', silu: 'u' }]) {
      const { bundle } = exportModel(t, { config: smallConfig({ block }), precision: 'fp16' })
      for (const graph of ['score', 'rank']) {
        const model = fromBinary(ModelProtoSchema, readFileSync(`${bundle.folder}/${graph}.onnx`))
        const bodies = [
          ['graph', model.graph?.node ?? []] as const,
          ...model.functions.map(({ name, node }) => [name, node] as const),
        ]
        const concats = bodies.flatMap(([name, nodes]) =>
          nodes.filter(({ opType }) => opType === 'Concat').map(() => name),
        )
        // The gate's three parts are equally wide: ONNX Runtime passes their addresses by value.
        const allowed = 'combine' in block ? ['HstuGate', 'HstuGates'] : []
        assert.deepEqual(
          concats.filter((name) => !allowed.includes(name)),
          [],
          graph,
        )
      }
    }
  })
})
