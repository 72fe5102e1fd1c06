// The golden cases of checkpoints that the public code makes: the float64 oracle and every route of the
// engine against what that code computed.
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { createReference } from '../falcon/reference.js'
import { largestDifference } from '../falcon/verify.js'
import { parseConfig, readConfig, statedOf } from '../model/config.js'
import { openSafetensors } from '../model/export/safetensors.js'
import { openWeights } from '../model/export/variants.js'
import { TOLERANCE } from '../model/vectors.js'
import { readCases } from '../server/commands/golden/cases.js'
import { compareEngine } from '../server/commands/golden.js'
import { KINDS, openEngine } from './engines.js'
import { exportModel } from './fixtures.js'

/** The expected values are float32 of a float64 computation. */
const ORACLE_TOLERANCE = 1e-6

const FOLDERS = ['research', 'dlrm-v3'].flatMap((family) =>
  readdirSync(`test/golden/${family}`, { withFileTypes: true }).flatMap((entry) =>
    entry.isDirectory() ? [`test/golden/${family}/${entry.name}`] : [],
  ),
)

test('there are golden cases of both families', () => assert.ok(FOLDERS.length >= 4))

for (const folder of FOLDERS) {
  describe(`golden case ${folder}`, () => {
    const config = readConfig(`${folder}/config.json`)
    const source = openWeights(`${folder}/weights.safetensors`, config)
    after(() => source.close())
    const fp32 = exportModel({ after }, { config, source })

    test('the float64 oracle gives logits, K and V within 1e-6', () => {
      for (const { name, history, candidates, queryTime, ...expected } of readCases(
        folder,
        fp32.bundle,
      )) {
        const got = fp32.reference(history, candidates, queryTime)
        assert.ok(largestDifference(got.logits, expected.logits) <= ORACLE_TOLERANCE, name)
        for (const letter of ['k', 'v'] as const) {
          for (const [i, values] of got[letter].entries()) {
            // The case may state a row more than candidates see.
            const stated = expected[letter][i]?.subarray(0, values.length) ?? []
            const difference = largestDifference(values, stated)
            assert.ok(difference <= ORACLE_TOLERANCE, `${name} ${letter}.${i} ${difference}`)
          }
        }
      }
    })

    for (const kind of KINDS) {
      for (const precision of ['fp32', 'fp16'] as const) {
        const tolerance = TOLERANCE[precision]
        test(`engine ${kind} gives logits, K and V within ${tolerance} in ${precision}`, async (t) => {
          const model = precision === 'fp32' ? fp32 : exportModel(t, { config, source, precision })
          const engine = await openEngine(kind, model)
          t.after(() => engine.close())
          const lines: string[] = []
          const cases = readCases(folder, model.bundle)
          const worst = await compareEngine(engine, cases, precision, (line) => lines.push(line))
          assert.equal(lines.length, cases.length)
          assert.ok(worst <= tolerance, lines.join('\n'))
        })
      }
    }
  })
}

test('the other reading of the time clamp gives what upstream’s PyTorch path does', () => {
  const folder = 'test/golden/dlrm-v3/months'
  const stated = statedOf(readConfig(`${folder}/config.json`))
  const config = parseConfig({ ...stated, timeBucketClamp: 'width-1' })
  const source = openWeights(`${folder}/weights.safetensors`, config)
  const expected = openSafetensors(`${folder}/expected.safetensors`)
  const reference = createReference(source, config)
  const model = exportModel({ after }, { config, source })
  const cases = readCases(folder, model.bundle)
  assert.ok(cases.length > 0)
  for (const { name, history, candidates, queryTime, logits } of cases) {
    const got = reference(history, candidates, queryTime).logits
    const patched = expected.read(`${name}.upstreamClamp.logits`)
    assert.ok(largestDifference(got, patched) <= ORACLE_TOLERANCE, name)
    assert.ok(largestDifference(got, logits) > 1e-3, 'the two readings differ')
  }
  source.close()
  expected.close()
})
