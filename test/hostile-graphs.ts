// Bundles whose hashes are right and whose graphs are not: every engine refuses them, none crashes.
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { openBundle } from '../model/manifest.js'
import { createRandom } from '../model/random.js'
import type { CreateEngine } from './engine-kv-suite.js'
import { copyBundle, exportModel, type Json, randomTokens, reseal } from './fixtures.js'

export function hostileGraphs(name: string, create: CreateEngine): void {
  describe(`engine ${name}: hostile graphs`, () => {
    const model = exportModel({ after })
    const start = (folder: string) => create(openBundle(folder))

    const files: readonly (readonly [string, (bytes: Buffer) => Buffer])[] = [
      ['an empty file', () => Buffer.alloc(0)],
      ['text', () => Buffer.from('{"not": "onnx"}')],
      ['zeros', () => Buffer.alloc(4096)],
      ['random bytes', (b) => Buffer.from(b.map((x, i) => (x * 31 + i * 7) & 255))],
      ['a graph cut in half', (b) => b.subarray(0, b.length >> 1)],
      ['a graph without its last byte', (b) => b.subarray(0, b.length - 1)],
      ['a graph twice', (b) => Buffer.concat([b, b])],
      ['an unknown op', (b) => swap(b, 'LayerNormalization', 'LayerAbnormalitatio')],
      ['weights in another file', (b) => swap(b, 'weights.bin', 'weights.xyz')],
      ['weights outside the bundle', (b) => swap(b, 'weights.bin', '../shadow.b')],
    ]
    files.forEach(([what, change], i) => {
      const graph = (['prefill', 'score', 'rank'] as const)[i % 3] ?? 'rank'
      test(`refuses ${what} as ${graph}.onnx with MODEL_CONTRACT`, async (t) => {
        const folder = copyBundle(t, model.bundle)
        const file = `${folder}/${graph}.onnx`
        writeFileSync(file, change(readFileSync(file)))
        reseal(folder)
        await assert.rejects(start(folder), {
          code: 'MODEL_CONTRACT',
          message: new RegExp(`${graph}\\.onnx`),
        })
      })
    })

    test('refuses a weight file that ends too early, with MODEL_CONTRACT', async (t) => {
      const folder = copyBundle(t, model.bundle)
      const bytes = readFileSync(`${folder}/weights.bin`)
      writeFileSync(`${folder}/weights.bin`, bytes.subarray(0, bytes.length - 64))
      reseal(folder)
      await assert.rejects(start(folder), { code: 'MODEL_CONTRACT' })
    })

    test('refuses a graph whose inputs or outputs are not the manifest’s, naming both', async (t) => {
      const changes: readonly (readonly [(manifest: Json) => void, RegExp])[] = [
        [
          (m) => m.graphs.prefill.inputs.pop(),
          /prefill\.onnx must have the inputs .+, got .+past_v\.1/,
        ],
        [(m) => m.graphs.score.outputs.push({ name: 'x', type: 'float32', dims: [] }), /outputs/],
        [
          (m) => {
            m.graphs.score.inputs[0].type = 'int64'
          },
          /input rows must be int64 \(m, 3\), got int32 \(m, 3\)/,
        ],
        [
          (m) => {
            m.graphs.rank.outputs[0].dims = ['users', 'm', 4]
          },
          /output logits must be float32 \(users, m, 4\), got float32 \(users, m, 3\)/,
        ],
        [
          (m) => {
            m.graphs.rank.file = 'score.onnx'
          },
          /score\.onnx must have the inputs/,
        ],
      ]
      for (const [change, message] of changes) {
        const folder = copyBundle(t, model.bundle)
        reseal(folder, change)
        await assert.rejects(start(folder), { code: 'MODEL_CONTRACT', message })
      }
    })

    test('answers MODEL_CONTRACT, not a crash, when config and graph disagree in a run', async (t) => {
      const folder = copyBundle(t, model.bundle)
      reseal(folder, (manifest) => {
        manifest.config.dqk = 7
      })
      const engine = await start(folder)
      t.after(() => engine.close())
      const { history } = randomTokens(model, createRandom(1), { events: 2, candidates: 2 })
      await assert.rejects(engine.prefill(history), { code: 'MODEL_CONTRACT' })
      assert.equal(engine.stats().workers, 2)
    })
  })
}

/** Replaces text of equal length, so that the protobuf's lengths still fit. */
function swap(bytes: Buffer, from: string, to: string): Buffer {
  assert.ok(bytes.includes(from))
  const text = bytes.toString('latin1').replaceAll(from, to.slice(0, from.length))
  return Buffer.from(text, 'latin1')
}
