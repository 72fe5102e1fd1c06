import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createRandom } from '../model/random.js'
import { type FitPoint, nonNegativeFit } from './fit.js'

const costOf = (terms: readonly number[], factors: readonly number[]) =>
  terms.reduce((sum, term, i) => sum + term * (factors[i] ?? 0), 0)

/** Sum of squared relative errors. */
const errorOf = (points: readonly FitPoint[], factors: readonly number[]) =>
  points.reduce((sum, { terms, value }) => sum + (costOf(terms, factors) / value - 1) ** 2, 0)

/** 1, n, n², past: what a prefill costs by. */
const prefillTerms = (n: number, past: number) => [1, n, n * (past + n), past]
const LENGTHS: readonly (readonly [number, number])[] = [
  [2048, 0],
  [512, 0],
  [2, 0],
  [2, 2046],
  [2, 510],
  [512, 1536],
]

describe('nonNegativeFit', () => {
  test('finds the factors of exact measurements, over seven orders of magnitude', () => {
    for (const factors of [
      [0.5, 0.09, 2e-5, 0.01],
      [0.2, 0.004, 2.4e-5, 0.0007],
      [0.3, 0, 1e-6, 0],
      [0, 0.01, 0, 0],
    ]) {
      const points = LENGTHS.map(([n, past]) => {
        const terms = prefillTerms(n, past)
        return { terms, value: costOf(terms, factors) }
      })
      const got = nonNegativeFit(points, 4)
      for (const { terms, value } of points) {
        assert.ok(Math.abs(costOf(terms, got) / value - 1) < 1e-6, `${factors}: ${got}`)
      }
    }
  })

  test('comes closer than any of many random guesses, and none of its factors is negative', () => {
    for (let seed = 1; seed <= 30; seed++) {
      const random = createRandom(seed)
      const points = LENGTHS.map(([n, past]) => ({
        terms: prefillTerms(n, past),
        value: 0.1 + 100 * random(),
      }))
      const got = nonNegativeFit(points, 4)
      assert.ok(
        got.every((factor) => factor >= 0),
        `seed ${seed}: ${got}`,
      )
      const error = errorOf(points, got)
      for (let guess = 0; guess < 2000; guess++) {
        const near = got.map((factor, t) => {
          const size = factor || 1 / Math.max(...points.map(({ terms }) => terms[t] ?? 0))
          return Math.max(0, factor + (random() - 0.5) * size)
        })
        assert.ok(error <= errorOf(points, near) + 1e-9, `seed ${seed}: ${near} beats ${got}`)
      }
    }
  })

  test('leaves at 0 what the points cannot tell apart, what they lack and what would fall with work', () => {
    assert.deepEqual(nonNegativeFit([{ terms: [2, 0], value: 4 }], 2), [2, 0])
    const twins = nonNegativeFit(
      [1, 2, 3].map((n) => ({ terms: [n, n], value: 5 * n })),
      2,
    )
    assert.ok(Math.abs((twins[0] ?? 0) + (twins[1] ?? 0) - 5) < 1e-9 && twins.includes(0))
    const falling = nonNegativeFit(
      [1, 2, 3].map((n) => ({ terms: [1, n], value: 10 - n })),
      2,
    )
    assert.equal(falling[1], 0)
    assert.deepEqual(nonNegativeFit([], 3), [0, 0, 0])
  })
})
