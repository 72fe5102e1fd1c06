import assert from 'node:assert/strict'
import { after, describe, test } from 'node:test'
import { exportModel, randomTokens } from '../../../test/fixtures.js'
import { collectGarbage } from '../../../test/gc.js'
import { createRandom } from '../../random.js'
import { createCapiEngine } from './engine.js'

const SCORES = 12_000
const CALLERS = 24
const SCORES_PER_COLLECTION = 150

describe('engine capi: many callers', () => {
  const model = exportModel({ after })

  test('gives 12,000 scores of 24 callers bit for bit while garbage is collected', async (t) => {
    const engine = await createCapiEngine({ bundle: model.bundle, workers: 3 })
    t.after(() => engine.close())
    const random = createRandom(31)
    const cases = await Promise.all(
      Array.from({ length: 30 }, async (_, i) => {
        const shape = { events: i, candidates: 1 + (i % 9) }
        const { history, candidates, queryTime } = randomTokens(model, random, shape)
        const handle = await engine.prefill(history)
        const expected = await engine.score(handle, candidates, queryTime)
        return { handle, candidates, queryTime, expected }
      }),
    )
    let left = SCORES
    const wrong: string[] = []
    const call = async () => {
      while (left > 0) {
        left--
        const index = Math.floor(random() * cases.length)
        const each = cases[index]
        assert.ok(each !== undefined)
        // A copy of its own, which nobody but the run under way refers to.
        const got = await engine.score(each.handle, each.candidates.slice(), each.queryTime)
        if (Buffer.compare(bytesOf(got), bytesOf(each.expected)) !== 0) {
          wrong.push(`case ${index}: ${got} for ${each.expected}`)
        }
        if (left % SCORES_PER_COLLECTION === 0) collectGarbage()
      }
    }
    await Promise.all(Array.from({ length: CALLERS }, call))
    assert.deepEqual(wrong, [])
    assert.equal(engine.stats().pendingJobs, 0)
  })
})

function bytesOf({ buffer, byteOffset, byteLength }: Float32Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength)
}
