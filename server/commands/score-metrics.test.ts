import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createRandom } from '../../model/random.js'
import { taskQuality } from './score-metrics.js'

/** AUC by its definition: over all pairs of a positive and a negative, ties at half. */
function pairwiseAuc(logits: Float64Array, labels: Uint8Array): number {
  let wins = 0
  let pairs = 0
  labels.forEach((positive, i) => {
    labels.forEach((other, j) => {
      if (positive !== 1 || other !== 0) return
      pairs++
      wins += Math.sign((logits[i] ?? 0) - (logits[j] ?? 0)) / 2 + 0.5
    })
  })
  return wins / pairs
}

describe('taskQuality', () => {
  test('AUC equals the pairwise definition, ties included', () => {
    for (let seed = 1; seed <= 20; seed++) {
      const random = createRandom(seed)
      const logits = Float64Array.from({ length: 60 }, () => Math.floor(random() * 12) - 6)
      const labels = Uint8Array.from({ length: 60 }, (_, i) => (i < 2 ? i : Number(random() < 0.3)))
      const { auc } = taskQuality(logits, labels)
      assert.ok(Math.abs(auc - pairwiseAuc(logits, labels)) < 1e-12, `seed ${seed}`)
    }
  })

  test('predicting the base rate gives NE 1 and AUC a half', () => {
    const labels = Uint8Array.from([1, 0, 0, 0])
    const { ne, auc, logLoss } = taskQuality(new Float64Array(4).fill(Math.log(1 / 3)), labels)
    assert.ok(Math.abs(ne - 1) < 1e-12)
    assert.equal(auc, 0.5)
    assert.ok(Math.abs(logLoss + (0.25 * Math.log(0.25) + 0.75 * Math.log(0.75))) < 1e-12)
  })

  test('stays finite for logits that saturate a sigmoid', () => {
    const { logLoss } = taskQuality(Float64Array.from([800, -800]), Uint8Array.from([0, 1]))
    assert.equal(logLoss, 800)
  })
})
