// bucket(s) = clamp(floor(ln(max(s,1)) / 0.301), 0, 127), exact at every edge, in the oracle and in the graphs.
import assert from 'node:assert/strict'
import { after, describe, test } from 'node:test'
import { bucket } from '../falcon/oracle/paper.js'
import { largestDifference } from '../falcon/verify.js'
import { randomWeights } from '../model/export/random.js'
import type { HistoryTokens } from '../model/tokens.js'
import { KINDS, openEngine } from './engines.js'
import { exportModel, smallConfig } from './fixtures.js'

/** 31,700 years. Beyond, the float64 logarithm is off by single seconds in 10^13. */
const MAX_SECONDS = 1e12

/** The first second of bucket k: ceil(e^(0.301 k)). */
const EDGES = Array.from({ length: 127 }, (_, k) => Math.ceil(Math.exp(0.301 * (k + 1)))).filter(
  (edge) => edge < MAX_SECONDS,
)

const AROUND = [...new Set(EDGES.flatMap((edge) => [edge - 1, edge, edge + 1]))]

describe('time buckets', () => {
  test('the oracle counts the edges that are <= s, around every edge and for all s <= 100,000', () => {
    const countEdges = (s: number) => EDGES.filter((edge) => edge <= s).length
    for (const s of AROUND) assert.equal(bucket(s), countEdges(s), `s=${s}`)
    let passed = 0
    for (let s = 0; s <= 100_000; s++) {
      while ((EDGES[passed] ?? Infinity) <= s) passed++
      assert.equal(bucket(s), passed, `s=${s}`)
    }
    for (const s of [-1, -1e9, 0, 1]) assert.equal(bucket(s), 0, `s=${s}`)
    assert.equal(bucket(2 ** 62), 127)
  })

  describe('the graphs', () => {
    // Weights that make neighbouring buckets loud, and one token of history.
    const config = smallConfig({ layers: 2, context: [], maxTokens: 4 })
    const random = randomWeights(config, 3)
    const source = {
      ...random,
      read: (name: string) => {
        const data = random.read(name)
        return name.endsWith('time_w') ? data.map((_, i) => ((2 * i) % 5) - 2) : data
      },
    }
    const model = exportModel({ after }, { config, source })
    const slots = model.vocabulary.layout.slots
    const candidates = Int32Array.of(3, 36, 42)
    const history = (times: readonly number[]): HistoryTokens => ({
      rows: Int32Array.from({ length: times.length * slots }, (_, i) => 1 + (i % 5)),
      actions: new Int32Array(times.length),
      times: Float64Array.from(times),
      length: times.length,
    })

    for (const kind of KINDS) {
      test(`fall into the oracle’s bucket around every edge, between candidate and token and between tokens (${kind})`, async (t) => {
        const engine = await openEngine(kind, model)
        t.after(() => engine.close())
        const start = 7
        const users = AROUND.flatMap((s) => [
          { history: history([start]), candidates, queryTime: start + s },
          { history: history([start, start + s]), candidates, queryTime: start + s },
          { history: history([start + s, start]), candidates, queryTime: start },
        ])
        const ranked = await engine.rank(users)
        const logits = users.map((user) => {
          return model.reference(user.history, user.candidates, user.queryTime).logits
        })
        for (let i = 1; i < AROUND.length; i++) {
          if (bucket(AROUND[i] ?? 0) === bucket(AROUND[i - 1] ?? 0)) continue
          const difference = largestDifference(logits[3 * i] ?? [], logits[3 * i - 3] ?? [])
          assert.ok(difference > 1e-3, `a wrong bucket would show at s=${AROUND[i]}: ${difference}`)
        }
        for (const [u, user] of users.entries()) {
          const what = `times ${user.history.times}, query ${user.queryTime}`
          const handle = await engine.prefill(user.history)
          const scored = await engine.score(handle, user.candidates, user.queryTime)
          engine.release(handle)
          for (const got of [scored, ranked[u] ?? []]) {
            assert.ok(largestDifference(got, logits[u] ?? []) <= 1e-4, what)
          }
        }
      })
    }
  })
})
