import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import {
  bytes,
  clock,
  count,
  digits,
  duration,
  fromField,
  percent,
  relative,
  toField,
  utc,
} from './format.js'

describe('the page’s numbers', () => {
  test('keep three digits, and whole numbers whole', () => {
    const shown = [0, 7, 4096, 1234.5, 12.345, 0.0022431, -0.5, Number.NaN].map((n) => digits(n))
    assert.deepEqual(shown, ['0', '7', '4,096', '1,235', '12.3', '0.00224', '-0.500', '–'])
    assert.equal(digits(0.99987, 4), '0.9999')
  })

  test('are in the unit that fits', () => {
    const times = [0, 0.0001, 0.21, 8.512, 149, 2500, 180_000].map(duration)
    assert.deepEqual(times, ['0 ms', '0 ms', '210 µs', '8.51 ms', '149 ms', '2.50 s', '3 min'])
    assert.deepEqual([0, 1024, 1.5 * 2 ** 20, 2 ** 50].map(bytes), [
      '0 B',
      '1 KiB',
      '1.50 MiB',
      '1,024 TiB',
    ])
    assert.equal(percent(0.00224), '0.224 %')
    assert.equal(clock(66_600), '1:07')
    assert.deepEqual([count(1, 'event'), count(7583, 'event')], ['1 event', '7,583 events'])
  })

  test('say when an event was, seen from the query', () => {
    const at = [1000, 990, 1000 - 7200, 1000 + 2 * 86_400].map((time) => relative(time, 1000))
    assert.deepEqual(at, ['at the query', '10 s before', '2 h before', '2 d after'])
    assert.equal(utc(1_651_743_042), '2022-05-05 09:30:42')
    assert.equal(utc(1e300), '1e+300')
  })

  test('come back from a field as they went in', () => {
    assert.equal(fromField(toField(1_651_743_042)), 1_651_743_042)
    // Browsers leave seconds out when they are 0.
    assert.equal(fromField('2022-05-05T09:30'), 1_651_743_000)
    assert.equal(fromField(''), undefined)
    assert.equal(toField(1e300), '')
  })
})
