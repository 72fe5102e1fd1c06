import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createRandom } from '../../random.js'
import { createKvCodec, type KvCodec } from './codec.js'
import { KV_CODECS } from './graphs.js'

const WIDTH = 6

/** Rows whose largest magnitudes run from 1e-6 to 1e4, one of zeros among them. */
function someRows(count: number): Float32Array {
  const random = createRandom(3)
  return Float32Array.from({ length: count * WIDTH }, (_, i) => {
    const row = Math.floor(i / WIDTH)
    return row === 2 ? 0 : (random() - 0.5) * 10 ** ((row % 11) - 6)
  })
}

function bytes(values: Float32Array | Uint16Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
}

async function roundTrip(codec: KvCodec, rows: Float32Array): Promise<Float32Array> {
  const decoded = await codec.decode(await codec.encode(bytes(rows), WIDTH), WIDTH)
  return new Float32Array(decoded.slice().buffer)
}

describe('K/V codec', () => {
  test('fp32 gives every bit back', async () => {
    const rows = someRows(40)
    assert.deepEqual(await roundTrip(await createKvCodec('fp32', 'fp32'), rows), rows)
  })

  test('fp16 is off by half a unit in the last of 11 bits at most', async () => {
    const rows = someRows(40)
    const back = await roundTrip(await createKvCodec('fp16', 'fp32'), rows)
    rows.forEach((value, i) => {
      const unit = Math.max(2 ** -24, 2 ** (Math.floor(Math.log2(Math.abs(value))) - 10))
      assert.ok(Math.abs((back[i] ?? 0) - value) <= unit / 2, `${value} became ${back[i]}`)
    })
  })

  test('fp16 keeps what is beyond its range finite', async () => {
    const rows = Float32Array.of(1e6, -1e6, 65_504, -65_520, 3e38, 0)
    const back = await roundTrip(await createKvCodec('fp16', 'fp32'), rows)
    assert.deepEqual([...back], [65_504, -65_504, 65_504, -65_504, 65_504, 0])
  })

  test('int8 is off by half a step of its row at most', async () => {
    const rows = someRows(40)
    const back = await roundTrip(await createKvCodec('int8', 'fp32'), rows)
    for (let start = 0; start < rows.length; start += WIDTH) {
      const row = rows.subarray(start, start + WIDTH)
      const step = Math.max(...row.map(Math.abs)) / 127
      row.forEach((value, i) => {
        const error = Math.abs((back[start + i] ?? 0) - value)
        assert.ok(error <= step * 0.501, `${value} became ${back[start + i]}, step ${step}`)
      })
    }
  })

  test('an fp16 bundle keeps its bits in fp16 and in fp32', async () => {
    const bits = Uint16Array.from({ length: 8 * WIDTH }, (_, i) => (i * 1311) % 0x7c00)
    for (const name of ['fp16', 'fp32'] as const) {
      const codec = await createKvCodec(name, 'fp16')
      const back = await codec.decode(await codec.encode(bytes(bits), WIDTH), WIDTH)
      assert.deepEqual(new Uint16Array(back.slice().buffer), bits, name)
    }
  })

  test('an fp16 bundle through int8 stays within a step', async () => {
    const bits = Uint16Array.of(0x3c00, 0xbc00, 0x3800, 0, 0x3400, 0xb800)
    const codec = await createKvCodec('int8', 'fp16')
    const back = await codec.decode(await codec.encode(bytes(bits), WIDTH), WIDTH)
    const first = new Uint16Array(back.slice().buffer)
    assert.equal(first[0], 0x3c00)
    assert.equal(first[3], 0)
  })

  test('encodes rows one by one: a slice of the planes is the planes of the slice', async () => {
    const rows = someRows(9)
    for (const name of KV_CODECS) {
      const codec = await createKvCodec(name, 'fp32')
      const whole = await codec.encode(bytes(rows), WIDTH)
      for (let start = 0; start < 9; start++) {
        const part = await codec.encode(bytes(rows.subarray(start * WIDTH)), WIDTH)
        codec.rowBytes(WIDTH).forEach((size, p) => {
          assert.deepEqual(part[p]?.slice(), whole[p]?.slice(start * size), `${name} from ${start}`)
        })
      }
      await codec.close()
    }
  })

  test('decodes planes that lie anywhere in a larger buffer', async () => {
    const rows = someRows(3)
    for (const name of KV_CODECS) {
      const codec = await createKvCodec(name, 'fp32')
      const planes = await codec.encode(bytes(rows), WIDTH)
      const shifted = planes.map((plane) => {
        const larger = new Uint8Array(plane.byteLength + 1)
        larger.set(plane, 1)
        return larger.subarray(1)
      })
      const expected = await codec.decode(planes, WIDTH)
      const got = await codec.decode(shifted, WIDTH)
      assert.deepEqual(got.slice(), expected.slice(), name)
    }
  })

  test('no rows are no bytes', async () => {
    for (const name of KV_CODECS) {
      const codec = await createKvCodec(name, 'fp32')
      const planes = await codec.encode(new Uint8Array(0), WIDTH)
      assert.equal((await codec.decode(planes, WIDTH)).byteLength, 0)
    }
  })
})
