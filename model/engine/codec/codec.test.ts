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

/** Planes of one array. */
function encode(codec: KvCodec, rows: Uint8Array): Promise<readonly Uint8Array[]> {
  return codec.encode([rows])
}

async function decode(codec: KvCodec, planes: readonly Uint8Array[]): Promise<Uint8Array> {
  const count = (planes[0]?.byteLength ?? 0) / (codec.planeBytes[0] ?? 1)
  const rows = new Uint8Array(count * (codec.rowBytes[0] ?? 0))
  await codec.decode(planes, [rows])
  return rows
}

async function roundTrip(codec: KvCodec, rows: Float32Array): Promise<Float32Array> {
  return new Float32Array((await decode(codec, await encode(codec, bytes(rows)))).buffer)
}

describe('K/V codec', () => {
  test('fp32 gives every bit back', async () => {
    const rows = someRows(40)
    assert.deepEqual(await roundTrip(createKvCodec('fp32', 'fp32', [WIDTH]), rows), rows)
  })

  test('fp16 is off by half a unit in the last of 11 bits at most', async () => {
    const rows = someRows(40)
    const back = await roundTrip(createKvCodec('fp16', 'fp32', [WIDTH]), rows)
    rows.forEach((value, i) => {
      const unit = Math.max(2 ** -24, 2 ** (Math.floor(Math.log2(Math.abs(value))) - 10))
      assert.ok(Math.abs((back[i] ?? 0) - value) <= unit / 2, `${value} became ${back[i]}`)
    })
  })

  test('fp16 keeps what is beyond its range finite', async () => {
    const rows = Float32Array.of(1e6, -1e6, 65_504, -65_520, 3e38, 0)
    const back = await roundTrip(createKvCodec('fp16', 'fp32', [WIDTH]), rows)
    assert.deepEqual([...back], [65_504, -65_504, 65_504, -65_504, 65_504, 0])
  })

  test('int8 is off by half a step of its row at most', async () => {
    const rows = someRows(40)
    const back = await roundTrip(createKvCodec('int8', 'fp32', [WIDTH]), rows)
    for (let start = 0; start < rows.length; start += WIDTH) {
      const row = rows.subarray(start, start + WIDTH)
      const step = Math.max(...row.map(Math.abs)) / 127
      row.forEach((value, i) => {
        const error = Math.abs((back[start + i] ?? 0) - value)
        assert.ok(error <= step * 0.501, `${value} became ${back[start + i]}, step ${step}`)
      })
    }
  })

  test('bf16 is off by half a unit in the last of 8 bits at most', async () => {
    const rows = someRows(40)
    const back = await roundTrip(createKvCodec('bf16', 'fp32', [WIDTH]), rows)
    rows.forEach((value, i) => {
      const unit = 2 ** (Math.floor(Math.log2(Math.abs(value))) - 7)
      assert.ok(Math.abs((back[i] ?? 0) - value) <= unit / 2, `${value} became ${back[i]}`)
    })
  })

  test('an engine of bf16 keeps its bits in bf16, in fp32, and in fp16 within that range', async () => {
    // From 2^-14 to 2^15, both signs.
    const bits = Uint16Array.from({ length: 8 * WIDTH }, (_, i) => {
      return ((i & 1) << 15) | ((113 + (i % 30)) << 7) | ((i * 37) & 127)
    })
    for (const name of ['bf16', 'fp32', 'fp16'] as const) {
      const codec = createKvCodec(name, 'bf16', [WIDTH])
      const back = await decode(codec, await encode(codec, bytes(bits)))
      assert.deepEqual(new Uint16Array(back.slice().buffer), bits, name)
    }
  })

  test('an fp16 bundle keeps its bits in fp16 and in fp32', async () => {
    const bits = Uint16Array.from({ length: 8 * WIDTH }, (_, i) => (i * 1311) % 0x7c00)
    for (const name of ['fp16', 'fp32'] as const) {
      const codec = createKvCodec(name, 'fp16', [WIDTH])
      const back = await decode(codec, await encode(codec, bytes(bits)))
      assert.deepEqual(new Uint16Array(back.buffer), bits, name)
    }
  })

  test('an fp16 bundle through int8 stays within a step', async () => {
    const bits = Uint16Array.of(0x3c00, 0xbc00, 0x3800, 0, 0x3400, 0xb800)
    const codec = createKvCodec('int8', 'fp16', [WIDTH])
    const first = new Uint16Array((await decode(codec, await encode(codec, bytes(bits)))).buffer)
    assert.equal(first[0], 0x3c00)
    assert.equal(first[3], 0)
  })

  test('encodes rows one by one: a slice of the planes is the planes of the slice', async () => {
    const rows = someRows(9)
    for (const name of KV_CODECS) {
      const codec = createKvCodec(name, 'fp32', [WIDTH])
      const whole = await encode(codec, bytes(rows))
      for (let start = 0; start < 9; start++) {
        const part = await encode(codec, bytes(rows.subarray(start * WIDTH)))
        codec.planeBytes.forEach((size, p) => {
          assert.deepEqual(part[p]?.slice(), whole[p]?.slice(start * size), `${name} from ${start}`)
        })
      }
      await codec.close()
    }
  })

  test('decodes planes that lie anywhere in a larger buffer', async () => {
    const rows = someRows(3)
    for (const name of KV_CODECS) {
      const codec = createKvCodec(name, 'fp32', [WIDTH])
      const planes = await encode(codec, bytes(rows))
      const shifted = planes.map((plane) => {
        const larger = Buffer.alloc(plane.byteLength + 1)
        larger.set(plane, 1)
        return larger.subarray(1)
      })
      assert.deepEqual(await decode(codec, shifted), await decode(codec, planes), name)
    }
  })

  test('decodes arrays of several widths, each into a part of a larger one', async () => {
    const rows = someRows(3)
    const half = Uint16Array.from(rows, (_, i) => 0x3c00 + i)
    for (const [name, precision] of [
      ['fp32', 'fp32'],
      ['fp16', 'fp32'],
      ['int8', 'fp32'],
      ['fp16', 'fp16'],
      ['int8', 'fp16'],
      ['bf16', 'fp32'],
      ['bf16', 'fp16'],
      ['bf16', 'bf16'],
      ['fp16', 'bf16'],
      ['int8', 'bf16'],
    ] as const) {
      const own = bytes(precision === 'fp32' ? rows : half)
      // 3 rows of WIDTH, and the same bytes as 9 rows of a third of it.
      const widths = [WIDTH, WIDTH / 3]
      const codec = createKvCodec(name, precision, widths)
      const into = widths.map(() => new Uint8Array(own.byteLength + 8).fill(0xaa))
      const parts = into.map((array) => array.subarray(4, -4))
      await codec.decode(await codec.encode([own, own]), parts)
      for (const [i, width] of widths.entries()) {
        const alone = createKvCodec(name, precision, [width])
        const expected = new Uint8Array(own.byteLength)
        await alone.decode(await alone.encode([own]), [expected])
        assert.deepEqual(parts[i]?.slice(), expected, `${name} of ${precision}, width ${width}`)
        const around = [...(into[i]?.subarray(0, 4) ?? []), ...(into[i]?.subarray(-4) ?? [])]
        assert.deepEqual(around, Array(8).fill(0xaa))
      }
      await codec.close()
    }
  })

  test('no rows are no bytes', async () => {
    for (const name of KV_CODECS) {
      const codec = createKvCodec(name, 'fp32', [WIDTH])
      const planes = await encode(codec, new Uint8Array(0))
      assert.equal((await decode(codec, planes)).byteLength, 0)
    }
  })
})
