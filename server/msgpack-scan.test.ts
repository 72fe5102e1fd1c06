import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { decode, encode } from '@msgpack/msgpack'
import { createRandom } from '../model/random.js'
import { scanMsgpack } from './msgpack-scan.js'

const nested = (levels: number) => Buffer.concat([Buffer.alloc(levels, 0x91), Buffer.of(0xc0)])

describe('the scan of MessagePack', () => {
  test('lets pass every kind of value in every length that there is', () => {
    const lengths = [0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536]
    const values: unknown[] = [null, true, false, 1.5, -1, -33, -129, -32_769, -(2 ** 31) - 1]
    values.push(127, 128, 255, 256, 65_535, 65_536, 2 ** 32 - 1, 2 ** 32, new Date(0), new Date(1))
    for (const n of lengths) {
      values.push('x'.repeat(n), 'ü'.repeat(n), new Uint8Array(n), Array(n).fill(7))
      values.push(Object.fromEntries(Array.from({ length: n }, (_, i) => [`k${i}`, i])))
    }
    for (const value of values)
      assert.doesNotThrow(() => scanMsgpack(encode({ a: [value, 'end'] })))
  })

  test('16 levels pass, 17 do not', () => {
    scanMsgpack(nested(16))
    assert.throws(() => scanMsgpack(nested(17)), /at most 16 deep/)
    assert.throws(() => scanMsgpack(nested(2 ** 24)), /at most 16 deep/)
  })

  test('an array or a map that says it is longer than the whole is refused', () => {
    for (const head of [
      [0x9f],
      [0xdc, 0xff, 0xff],
      [0xdd, 0xff, 0xff, 0xff, 0xff],
      [0x8f],
      [0xde, 0xff, 0xff],
      [0xdf, 0xff, 0xff, 0xff, 0xff],
    ]) {
      assert.throws(() => scanMsgpack(Uint8Array.from(head)), /cannot hold \d+ values/)
    }
  })

  test('strings that are not UTF-8 are refused, keys too, in every length form', () => {
    const bad = [0xc3, 0x28]
    for (const head of [[0xa2], [0xd9, 2], [0xda, 0, 2], [0xdb, 0, 0, 0, 2]]) {
      assert.throws(() => scanMsgpack(Uint8Array.from([...head, ...bad])), /UTF-8/)
      assert.throws(() => scanMsgpack(Uint8Array.from([0x81, ...head, ...bad, 1])), /UTF-8/)
    }
  })

  test('bytes at random: what the scan lets pass a decoder ends soon, and nothing hangs', () => {
    const random = createRandom(5)
    let passed = 0
    for (let i = 0; i < 5_000; i++) {
      const bytes = Uint8Array.from({ length: 1 + Math.floor(random() * 24) }, () => random() * 256)
      try {
        scanMsgpack(bytes)
      } catch (error) {
        assert.ok(error instanceof RangeError)
        continue
      }
      passed++
      try {
        decode(bytes)
      } catch (error) {
        assert.ok(error instanceof Error)
      }
    }
    assert.ok(passed > 250, String(passed))
  })
})
