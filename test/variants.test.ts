// Combinations of what differs between the public HSTU variants inside one layer: the graphs
// against the float64 oracle, by score, append and rank.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { largestDifference } from '../falcon/verify.js'
import { createRandom } from '../model/random.js'
import { sliceTokens } from '../model/tokens.js'
import { TOLERANCE } from '../model/vectors.js'
import { KINDS, type Kind, openEngine } from './engines.js'
import {
  BLOCK_FLAGS,
  exportModel,
  type ModelFixture,
  randomTokens,
  type Scope,
  smallConfig,
} from './fixtures.js'

const isEven = (bits: number) => bits.toString(2).replaceAll('0', '').length % 2 === 0

/**
 * 64 of the 256 combinations, in which every combination of any four flags occurs: the words of the
 * linear code whose dual, {11111000, 00011111, 11100111}, has no word lighter than 5.
 */
const COVERING = Array.from({ length: 256 }, (_, code) => code)
  .filter((code) => isEven(code & 0b11111000) && isEven(code & 0b00011111))
  .map((code) =>
    Object.fromEntries(
      Object.entries(BLOCK_FLAGS).map(([name, values], i) => [name, values[(code >> i) & 1]]),
    ),
  )

const TINY = { dModel: 8, heads: 2, dqk: 3, dv: 4, headHidden: 6, maxTokens: 24, positions: 7 }

async function largestOf(
  scope: Scope,
  changes: object,
  seed: number,
  kinds: readonly Kind[],
): Promise<number> {
  const model = exportModel(scope, { config: smallConfig({ ...TINY, ...changes }), seed })
  const differences: number[] = []
  for (const kind of kinds) differences.push(await largestOn(kind, model, seed))
  return Math.max(...differences)
}

async function largestOn(kind: Kind, model: ModelFixture, seed: number): Promise<number> {
  const engine = await openEngine(kind, model)
  try {
    const random = createRandom(seed)
    const users = [9, 4].map((events) =>
      randomTokens(model, random, { events, candidates: 3, series: 1 }),
    )
    const ranked = await engine.rank(users)
    const differences = users.map(async ({ history, candidates, queryTime }, u) => {
      const expected = model.reference(history, candidates, queryTime).logits
      const split = Math.min(5, history.length)
      const past = await engine.prefill(sliceTokens(history, 0, split))
      const rest = sliceTokens(history, split, history.length)
      const appended = await engine.prefill(rest, { handle: past, tokens: split })
      const whole = await engine.prefill(history)
      return [
        largestDifference(await engine.score(whole, candidates, queryTime), expected),
        largestDifference(await engine.score(appended, candidates, queryTime), expected),
        largestDifference(ranked[u] ?? [], expected),
      ]
    })
    return Math.max(...(await Promise.all(differences)).flat())
  } finally {
    await engine.close()
  }
}

describe('block flags', () => {
  test('any four flags meet in all their combinations', () => {
    const names = Object.keys(BLOCK_FLAGS)
    for (const a of names)
      for (const b of names)
        for (const c of names)
          for (const d of names) {
            if (!(a < b && b < c && c < d)) continue
            const seen = COVERING.map((block) => [a, b, c, d].map((name) => block[name]).join())
            assert.equal(new Set(seen).size, 16, `${a} ${b} ${c} ${d}`)
          }
  })

  test('64 combinations, two layers, dqk != dv, agree with the oracle', async (t) => {
    // One engine: these are the graphs' differences, and both run the same.
    const queue = COVERING.entries()
    const lane = async () => {
      for (const [i, block] of queue) {
        const difference = await largestOf(t, { block }, 100 + i, ['capi'])
        assert.ok(difference <= TOLERANCE.fp32, `${difference} at ${JSON.stringify(block)}`)
      }
    }
    await Promise.all([lane(), lane()])
  })
})

describe('shapes at the edge', () => {
  const cases: { readonly [name: string]: object } = {
    'one layer: no causal attention at all': { layers: 1 },
    'five layers': { layers: 5 },
    'one head, one channel each': { heads: 1, dqk: 1, dv: 1 },
    'thirty action types': {
      actions: ['unobserved', 'moved', ...Array.from({ length: 28 }, (_, i) => `a${i}`)],
    },
    'one action type': { actions: ['moved'], unobservedAction: 'moved' },
    'one task': { tasks: [{ name: 'only', type: 'regression' }] },
    'one item feature, no context, no series': {
      context: [],
      auxiliary: [],
      itemFeatures: [{ name: 'id', rows: 2 }],
    },
    'one position': { positions: 1 },
    'more positions than tokens': { positions: 500 },
    'a history limit of nothing but context': { maxTokens: 5 },
  }
  for (const [i, [name, changes]] of Object.entries(cases).entries()) {
    test(name, async (t) => {
      const difference = await largestOf(t, changes, 900 + i, KINDS)
      assert.ok(difference <= TOLERANCE.fp32, String(difference))
    })
  }
})
