import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { writeTimes } from './tokens.js'

const TIMES = [0, 1, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 253_402_300_799]

describe('writeTimes', () => {
  test('writes what BigInt gives and nothing else, at every place and of every length', () => {
    for (let length = 0; length <= TIMES.length; length++) {
      for (let at = 0; at <= TIMES.length - length; at++) {
        const out = new BigInt64Array(TIMES.length).fill(-1n)
        writeTimes(out, Float64Array.from(TIMES.slice(0, length)), at)
        const expected = Array.from(out, (_, i) =>
          i >= at && i < at + length ? BigInt(TIMES[i - at] ?? 0) : -1n,
        )
        assert.deepEqual([...out], expected, `${length} at ${at}`)
      }
    }
  })

  test('refuses times that do not fit, and fractions', () => {
    const out = new BigInt64Array(2)
    assert.throws(() => writeTimes(out, Float64Array.of(1, 2), 1), /room for 2 times at 1, got 2/)
    assert.throws(() => writeTimes(out, Float64Array.of(0.5)), RangeError)
  })
})
