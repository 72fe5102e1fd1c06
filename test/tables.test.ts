// Embedding tables that are stored as something else than the graphs compute in: every way to the logits, on
// both engines, against the float64 oracle.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createReference } from '../falcon/reference.js'
import { largestDifference, verifyBundle } from '../falcon/verify.js'
import { type HstuConfig, parseConfig } from '../model/config.js'
import { buildCandidates, buildHistory } from '../model/sequence.js'
import { readVectors } from '../model/vectors.js'
import { KINDS, openEngine } from './engines.js'
import { exportModel, type ModelFixture, smallConfig } from './fixtures.js'
import { SMALL_DLRM, SMALL_RESEARCH } from './small-checkpoints.js'

const CONFIGS = [smallConfig(), parseConfig(SMALL_RESEARCH), parseConfig(SMALL_DLRM)]

/** Largest difference that the table makes to a logit of these models, against float32 rows. */
const ERRORS: { readonly [table: string]: { readonly [V in HstuConfig['variant']]: number } } = {
  fp16: { paper: 2e-3, research: 2e-3, 'dlrm-v3': 2e-3 },
  int8: { paper: 3e-2, research: 3e-2, 'dlrm-v3': 3e-2 },
}

/** Between the oracle over float32 rows and the vectors, which are over the stored ones. */
function errorOf({ bundle, source, config }: ModelFixture): number {
  const exact = createReference(source, config)
  const differences = readVectors(bundle).map(({ request, logits }) => {
    const history = buildHistory(request, bundle.vocabulary)
    const { rows } = buildCandidates(request, bundle.vocabulary, history)
    return largestDifference(exact(history.tokens, rows, request.time).logits, logits.flat())
  })
  return Math.max(...differences)
}

for (const config of CONFIGS) {
  describe(`a ${config.variant} model`, () => {
    const cases = [
      ['fp32', 'fp16'],
      ['fp32', 'int8'],
      ['fp16', 'int8'],
    ] as const
    for (const [precision, table] of cases) {
      test(`gives the same scores in ${precision} over a table in ${table}, on both engines`, async (t) => {
        const model = exportModel(t, { config, precision, table })
        assert.equal(model.bundle.manifest.embedding.type, table)
        for (const kind of KINDS) {
          const engine = await openEngine(kind, model)
          try {
            const { maxDifference, tolerance } = await verifyBundle(engine, model.bundle)
            t.diagnostic(`${kind}: ${maxDifference.toExponential(1)} of ${tolerance}`)
            assert.ok(maxDifference <= tolerance, `${kind}: ${maxDifference}`)
          } finally {
            await engine.close()
          }
        }
      })
    }

    test('has the error that is stated for its table', (t) => {
      for (const table of ['fp16', 'int8'] as const) {
        const error = errorOf(exportModel(t, { config, table }))
        t.diagnostic(`${table}: ${error.toExponential(1)}`)
        assert.ok(
          error > 0 && error <= (ERRORS[table]?.[config.variant] ?? 0),
          `${table}: ${error}`,
        )
      }
    })
  })
}

test('a table as the precision has it is not named, and its files are those of before', (t) => {
  const plain = exportModel(t).bundle.manifest
  const named = exportModel(t, { table: 'fp32' }).bundle.manifest
  assert.equal(plain.embedding.type, undefined)
  assert.deepEqual(named, plain)
})
