import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { after, before, describe, test } from 'node:test'
import { loadRanker } from '../falcon/load.js'
import type { Ranker } from '../falcon/types.js'
import { exportBundle } from '../server/commands/export.js'
import { parseRank } from '../server/parse.js'
import { tempFolder } from './fixtures.js'

const DEMO = 'demo/kuairand'
const REQUESTS = readdirSync(`${DEMO}/requests`).sort()
const LIMITS = { maxHistoryEvents: 1000, maxCandidates: 1000, maxBatchRequests: 1 }
/** Float32 here against float32 in PyTorch; 1.4e-6 was seen. */
const TOLERANCE = 1e-4

function readJson(file: string) {
  return JSON.parse(readFileSync(`${DEMO}/${file}`, 'utf8'))
}

describe('the demo model', () => {
  const folder = tempFolder({ after })
  let ranker: Ranker
  before(async () => {
    exportBundle(DEMO, `${folder}/bundle`, 'fp32')
    ranker = await loadRanker({ bundle: `${folder}/bundle`, workers: 1, microBatchSize: 64 })
  })
  after(() => ranker.close())

  test('gives PyTorch’s logits for the real requests that carry them', async () => {
    const expected: Record<string, number[][]> = readJson('expected-logits.json')
    assert.equal(Object.keys(expected).length, 50)
    for (const [file, logits] of Object.entries(expected)) {
      const { input, options } = parseRank(readJson(`requests/${file}`), LIMITS, 0)
      const { items } = await ranker.rank(input, options)
      assert.equal(items.length, logits.length, file)
      for (const { index, logits: got } of items) {
        got.forEach((logit, t) => {
          const wanted = logits[index]?.[t] ?? Number.NaN
          assert.ok(
            Math.abs(logit - wanted) <= TOLERANCE,
            `${file} candidate ${index} task ${t}: ${logit}, PyTorch ${wanted}`,
          )
        })
      }
    }
  })

  test('ranks every sample request without a warning but for unknown items', async () => {
    assert.equal(REQUESTS.length, 200)
    for (const file of REQUESTS) {
      const { input } = parseRank(readJson(`requests/${file}`), LIMITS, 0)
      const { items, warnings } = await ranker.rank(input, { topK: 1 })
      assert.equal(items.length, 1, file)
      assert.deepEqual(
        warnings.filter(({ code }) => code !== 'UNKNOWN_ITEM'),
        [],
        file,
      )
    }
  })

  test('puts what the users really did above what they did not', async () => {
    const labels: Record<string, Record<string, string[]>> = readJson('labels.json')
    let above = 0
    let pairs = 0
    for (const file of REQUESTS) {
      const { input } = parseRank(readJson(`requests/${file}`), LIMITS, 0)
      const { items } = await ranker.rank(input, { weights: { click: 1 } })
      const shown = items.filter(({ item }) => Object.hasOwn(labels[file] ?? {}, item))
      const clicked = (item: string) => labels[file]?.[item]?.includes('click') ?? false
      for (const [i, better] of shown.entries()) {
        for (const worse of shown.slice(i + 1)) {
          if (clicked(better.item) === clicked(worse.item)) continue
          pairs++
          if (clicked(better.item)) above++
        }
      }
    }
    assert.ok(pairs >= 50, `only ${pairs} pairs of a clicked and an unclicked exposure`)
    assert.ok(above > pairs / 2, `${above} of ${pairs} pairs in the right order`)
  })
})
