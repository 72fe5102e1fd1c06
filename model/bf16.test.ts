import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { fromBf16, toBf16 } from './bf16.js'
import { createRandom } from './random.js'

const bytes = ({ buffer, byteOffset, byteLength }: NodeJS.ArrayBufferView) =>
  new Uint8Array(buffer, byteOffset, byteLength)
const roundTrip = (values: Float32Array) => new Float32Array(fromBf16(toBf16(bytes(values))).buffer)

describe('bfloat16', () => {
  test('every one of its numbers comes back bit for bit', () => {
    const all = Uint16Array.from({ length: 2 ** 16 }, (_, i) => i)
    const numbers = all.filter((x) => (x & 0x7fff) <= 0x7f80)
    assert.deepEqual(new Uint16Array(toBf16(fromBf16(bytes(numbers))).buffer), numbers)
  })

  test('rounds to the nearest of 8 bits, a tie to the even one, and over the largest to infinity', () => {
    const random = createRandom(1)
    for (let i = 0; i < 10_000; i++) {
      const value = Math.fround((random() - 0.5) * 10 ** Math.floor(60 * random() - 30))
      const [got = Number.NaN] = roundTrip(Float32Array.of(value))
      const unit = 2 ** (Math.floor(Math.log2(Math.abs(value))) - 7)
      assert.ok(Math.abs(got - value) <= unit / 2, `${value} became ${got}`)
    }
    const ties = Float32Array.of(1 + 2 ** -8, 1 + 3 * 2 ** -8, -1 - 2 ** -8, 3.4e38)
    assert.deepEqual([...roundTrip(ties)], [1, 1 + 2 ** -6, -1, Number.POSITIVE_INFINITY])
    const special = Float32Array.of(0, -0, Number.NEGATIVE_INFINITY)
    assert.deepEqual([...roundTrip(special)], [...special])
  })

  test('no NaN becomes a number', () => {
    const nans = Uint32Array.of(0x7fc0_0000, 0x7f80_0001, 0xff80_0001, 0x7fff_ffff, 0xffff_ffff)
    const got = roundTrip(new Float32Array(nans.buffer))
    assert.ok(got.every(Number.isNaN), String(got))
  })

  test('reads bytes that lie anywhere', () => {
    const values = Float32Array.of(1.5, -2, 1e-3)
    const shifted = new Uint8Array(values.byteLength + 1)
    shifted.set(bytes(values), 1)
    assert.deepEqual(toBf16(shifted.subarray(1)), toBf16(bytes(values)))
    const narrow = toBf16(bytes(values))
    const moved = new Uint8Array(narrow.byteLength + 1)
    moved.set(narrow, 1)
    assert.deepEqual(fromBf16(moved.subarray(1)), fromBf16(narrow))
  })
})
