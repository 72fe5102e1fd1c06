import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { type HistoryTokens, sliceTokens } from '../model/tokens.js'
import { contentOf, edited, plainTokens } from '../test/counting-engine.js'
import { coveredTokens, digestAt, digestChain, PAGE_TOKENS } from './digest.js'

const MAX = 200

describe('digestChain', () => {
  test('changes as a whole with any token’s row, action or time, at every position of 1..200', () => {
    const tokens = plainTokens(MAX)
    const changes: readonly ((copy: Mutable, at: number) => void)[] = [
      ({ rows }, at) => bump(rows, 2 * at),
      ({ rows }, at) => bump(rows, 2 * at + 1),
      ({ actions }, at) => bump(actions, at),
      ({ times }, at) => bump(times, at),
    ]
    const { whole, pages } = digestChain(tokens)
    for (let at = 0; at < MAX; at++) {
      for (const change of changes) {
        const copy = copyOf(tokens)
        change(copy, at)
        const other = digestChain(copy)
        assert.notEqual(other.whole, whole, `token ${at}`)
        const page = Math.floor(at / PAGE_TOKENS)
        other.pages.forEach((digest, i) => {
          assert.equal(digest === pages[i], i < page, `token ${at}, page ${i}`)
        })
      }
    }
  })

  test('is the same for equal tokens, wherever in memory they lie', () => {
    for (let length = 0; length <= MAX; length++) {
      const view = sliceTokens(plainTokens(MAX), 0, length)
      assert.deepEqual(digestChain(view), digestChain(copyOf(view)))
    }
  })

  test('differs between all lengths of one history', () => {
    const tokens = plainTokens(MAX)
    const wholes = Array.from(
      { length: MAX + 1 },
      (_, length) => digestChain(sliceTokens(tokens, 0, length)).whole,
    )
    assert.equal(new Set(wholes).size, MAX + 1)
    const { pages } = digestChain(tokens)
    wholes.forEach((whole, length) => {
      assert.equal(digestAt(tokens, pages, length), whole)
    })
  })

  test('tells tokens that swap places, rows that move between tokens, and times apart', () => {
    const tokens = plainTokens(2)
    const swapped = { ...tokens, rows: Int32Array.of(2, 3, 0, 1) }
    const moved = { ...tokens, rows: Int32Array.of(0, 2, 1, 3) }
    const digests = [tokens, swapped, moved].map((each) => digestChain(each).whole)
    assert.equal(new Set(digests).size, 3)
  })
})

describe('coveredTokens', () => {
  test('is what a token-by-token comparison says, for all lengths 0..200 and several first differences', () => {
    const base = plainTokens(MAX)
    const chains = Array.from({ length: MAX + 1 }, (_, n) => digestChain(sliceTokens(base, 0, n)))
    for (const differs of [0, 63, 64, 100, 128, MAX]) {
      // Equal to `base` up to, not including, token `differs`.
      const other = differs === MAX ? base : edited(base, differs)
      for (let length = 0; length <= MAX; length++) {
        const tokens = sliceTokens(other, 0, length)
        const chain = digestChain(tokens)
        for (let cached = 0; cached <= MAX; cached++) {
          const common = Math.min(differs, length, cached)
          const expected =
            common === cached ? cached : Math.floor(common / PAGE_TOKENS) * PAGE_TOKENS
          const got = coveredTokens(chains[cached] ?? chain, tokens, chain)
          assert.equal(got, expected, `cached ${cached}, now ${length}, differ at ${differs}`)
        }
      }
    }
  })

  test('never covers a token that differs', () => {
    const base = plainTokens(150)
    const cached = digestChain(base)
    for (let at = 0; at < 150; at++) {
      const tokens = edited(base, at)
      const covered = coveredTokens(cached, tokens, digestChain(tokens))
      assert.ok(covered <= at, `token ${at}: ${covered}`)
      const same = contentOf(sliceTokens(base, 0, covered))
      assert.equal(contentOf(sliceTokens(tokens, 0, covered)), same)
    }
  })
})

type Mutable = ReturnType<typeof copyOf>

function copyOf({ rows, actions, times, length }: HistoryTokens) {
  return { rows: rows.slice(), actions: actions.slice(), times: times.slice(), length }
}

function bump(array: Int32Array | Float64Array, at: number): void {
  array[at] = (array[at] ?? 0) + 1
}
