// The golden cases of test/golden: tokens, the float64 oracle and every route of the engine against them.
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { getFloat16 } from '@petamoriken/float16'
import { planMicroBatches } from '../falcon/plan.js'
import { createReference } from '../falcon/reference.js'
import { largestDifference } from '../falcon/verify.js'
import { readConfig } from '../model/config.js'
import { openSafetensors } from '../model/export/safetensors.js'
import { openWeights } from '../model/export/variants.js'
import type { Precision } from '../model/manifest.js'
import { sliceTokens } from '../model/tokens.js'
import { TOLERANCE } from '../model/vectors.js'
import { readGolden, tokensDifference, toRankInput } from '../server/commands/golden/paper.js'
import { KINDS, openEngine } from './engines.js'
import { exportModel, tokensOf } from './fixtures.js'

const ROOT = 'test/golden/paper'

/** The expected values are float32 of a float64 computation. */
const ORACLE_TOLERANCE = 1e-6

const names = readdirSync(ROOT, { withFileTypes: true }).flatMap((entry) =>
  entry.isDirectory() ? [entry.name] : [],
)

test('there are golden cases', () => assert.ok(names.length >= 3))

for (const name of names) {
  describe(`golden case ${name}`, () => {
    const folder = `${ROOT}/${name}`
    const config = readConfig(`${folder}/config.json`)
    const source = openWeights(`${folder}/weights.safetensors`, config)
    const expected = openSafetensors(`${folder}/expected.safetensors`)
    after(() => {
      source.close()
      expected.close()
    })
    const perLayer = (request: string, letter: string) =>
      Array.from({ length: config.layers }, (_, i) => expected.read(`${request}.${letter}.${i}`))
    const fp32 = exportModel({ after }, { config, source })
    const cases = readGolden(`${folder}/inputs.json`).map((request) => ({
      request,
      ...tokensOf(toRankInput(request, config), fp32.vocabulary),
      logits: expected.read(`${request.name}.logits`),
    }))

    test('sequence building gives the very tokens', () => {
      for (const { request, history, candidates } of cases) {
        const difference = tokensDifference(request, history, candidates, fp32.bundle.manifest)
        assert.equal(difference, undefined, request.name)
      }
    })

    test('the float64 oracle gives logits, K and V within 1e-6', () => {
      const reference = createReference(source, config)
      for (const { request, history, candidates, queryTime, logits } of cases) {
        const got = reference(history, candidates, queryTime)
        assert.ok(largestDifference(got.logits, logits) <= ORACLE_TOLERANCE, request.name)
        for (const letter of ['k', 'v'] as const) {
          perLayer(request.name, letter).forEach((values, i) => {
            const difference = largestDifference(got[letter][i] ?? [], values)
            assert.ok(
              difference <= ORACLE_TOLERANCE,
              `${request.name} ${letter}.${i} ${difference}`,
            )
          })
        }
      }
    })

    const engines = KINDS.flatMap((kind) => [
      { kind, precision: 'fp32' as const },
      { kind, precision: 'fp16' as const },
    ])
    for (const { kind, precision } of engines) {
      const tolerance = TOLERANCE[precision]
      test(`engine ${kind} gives logits, K and V within ${tolerance} in ${precision}`, async (t) => {
        const model = precision === 'fp32' ? fp32 : exportModel(t, { config, source, precision })
        const engine = await openEngine(kind, model)
        t.after(() => engine.close())
        const slots = model.vocabulary.layout.slots
        const batched = await engine.rank(cases)
        for (const [i, { request, history, candidates, queryTime, logits }] of cases.entries()) {
          const whole = await engine.prefill(history)
          const half = await engine.prefill(sliceTokens(history, 0, history.length >> 1))
          const rest = sliceTokens(history, half.tokens, history.length)
          const appended = await engine.prefill(rest, { handle: half, tokens: half.tokens })
          const inBatches = async (b: number) => {
            const got: number[] = []
            for (const { start, end } of planMicroBatches(candidates.length / slots, b)) {
              const batch = candidates.subarray(start * slots, end * slots)
              got.push(...(await engine.score(whole, batch, queryTime)))
            }
            return got
          }
          const routes = {
            score: await engine.score(whole, candidates, queryTime),
            'b=1': await inBatches(1),
            'b=4': await inBatches(4),
            append: await engine.score(appended, candidates, queryTime),
            rank: batched[i] ?? [],
          }
          for (const [route, got] of Object.entries(routes)) {
            const difference = largestDifference(got, logits)
            assert.ok(difference <= tolerance, `${request.name} by ${route}: ${difference}`)
          }
          const pages = await engine.exportKv(whole)
          for (const letter of ['k', 'v'] as const) {
            perLayer(request.name, letter).forEach((values, layer) => {
              const bytes = pages.layers[layer]?.[letter] ?? new Uint8Array(0)
              const difference = largestDifference(decode(bytes, precision), values)
              assert.ok(difference <= tolerance, `${request.name} ${letter}.${layer} ${difference}`)
            })
          }
          for (const handle of [whole, half, appended]) engine.release(handle)
        }
      })
    }
  })
}

function decode(bytes: Uint8Array, precision: Precision): Float32Array {
  if (precision === 'fp32') return new Float32Array(bytes.slice().buffer)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  return Float32Array.from({ length: bytes.length / 2 }, (_, i) => getFloat16(view, i * 2, true))
}
