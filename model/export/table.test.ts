import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { Float16Array } from '@petamoriken/float16'
import { safetensorsBytes, tempFolder } from '../../test/fixtures.js'
import { createRandom } from '../random.js'
import { rowChunks, sourceOf, tableOf, tensorsOf } from './checkpoint.js'
import { openSafetensors } from './safetensors.js'
import { asStored, parseTable, withStoredTable } from './table.js'
import { dense, writeWeightFile } from './weight-file.js'

function randomRows(rows: number, width: number, seed = 1): Float32Array {
  const random = createRandom(seed)
  return Float32Array.from({ length: rows * width }, () => (random() - 0.5) * 10 ** (random() * 4))
}

/** The table of a weight file of that alone, as the file has it. */
function written(folder: string, data: Float32Array, width: number, type: 'int8' | 'float16') {
  const tensors = new Map([['embedding', dense([data.length / width, width], data)]])
  const file = writeWeightFile(folder, 'w.bin', withStoredTable(tensors, type), 'float32')
  const bytes = new Uint8Array(readFileSync(`${folder}/w.bin`)).buffer
  return { file, bytes }
}

describe('an int8 table', () => {
  test('is off by at most half a step of each row, and keeps zeros and the largest number', (t) => {
    const width = 24
    const data = randomRows(300, width)
    data.fill(0, 7 * width, 8 * width)
    const { file, bytes } = written(tempFolder(t), data, width, 'int8')
    const table = file.entry('embedding')
    const places = file.entry('embedding.scale')
    assert.deepEqual([table.type, places.type, places.dims], ['int8', 'float32', [300, 1]])
    assert.equal(table.offset % 4096, 0)
    const values = new Int8Array(bytes, table.offset, table.length)
    const scales = new Float32Array(bytes, places.offset, 300)
    for (let row = 0; row < 300; row++) {
      const own = data.subarray(row * width, (row + 1) * width)
      const most = own.reduce((largest, x) => Math.max(largest, Math.abs(x)), 0)
      const scale = scales[row] ?? Number.NaN
      own.forEach((x, i) => {
        const back = (values[row * width + i] ?? Number.NaN) * scale
        assert.ok(Math.abs(back - x) <= (0.5 + 1e-6) * (most / 127))
        if (Math.abs(x) === most) assert.ok(Math.abs(back - x) <= 1e-6 * most)
      })
    }
    assert.equal(scales[7], 0)
  })

  test('reads back what the oracle is given', (t) => {
    const width = 24
    const data = randomRows(50, width)
    const { file, bytes } = written(tempFolder(t), data, width, 'int8')
    const values = new Int8Array(bytes, file.entry('embedding').offset, data.length)
    const scales = new Float32Array(bytes, file.entry('embedding.scale').offset, 50)
    const source = sourceOf(new Map([['t', { dims: [50, width], read: () => data }]]))
    const stored = asStored(source, { names: ['t'], factor: 1 }, 'int8').read('t')
    stored.forEach((x, i) => {
      assert.equal(x, Math.fround((values[i] ?? 0) * (scales[Math.floor(i / width)] ?? 0)))
    })
  })
})

test('a float16 table reads back what the oracle is given', (t) => {
  const data = randomRows(40, 8)
  const { file, bytes } = written(tempFolder(t), data, 8, 'float16')
  const half = new Float16Array(bytes, file.entry('embedding').offset, data.length)
  const source = sourceOf(new Map([['t', { dims: [40, 8], read: () => data }]]))
  assert.deepEqual(
    [...asStored(source, { names: ['t'], factor: 1 }, 'float16').read('t')],
    [...half],
  )
})

describe('a table in rows', () => {
  const layout = { rows: 30, slots: 1, tables: [] }
  const data = { a: randomRows(9, 5, 2), b: randomRows(12, 5, 3) }
  const source = sourceOf(
    new Map([
      ['a', { dims: [9, 5], read: () => data.a }],
      ['b', { dims: [12, 5], read: () => data.b }],
    ]),
  )
  const parts = [
    { name: 'a', at: 2, skip: 1, factor: 3 },
    { name: 'b', at: 14 },
  ]

  test('is the same wherever it is cut', () => {
    const table = tableOf(source, parts, layout, 5)
    const whole = table.read()
    const expected = new Float32Array(30 * 5)
    expected.set(
      data.a.subarray(5).map((x) => x * 3),
      2 * 5,
    )
    expected.set(data.b, 14 * 5)
    assert.deepEqual(whole, expected)
    for (let start = 0; start <= 30; start++) {
      for (let end = start; end <= 30; end++) {
        assert.deepEqual(table.readRows?.(start, end), whole.subarray(start * 5, end * 5))
      }
    }
  })

  test('names the tensor and the place in it of a number that is not finite', () => {
    const bad = sourceOf(
      new Map([
        ['a', { dims: [9, 5], read: () => data.a }],
        ['b', { dims: [12, 5], read: () => data.b.with(33, Number.NaN) }],
      ]),
    )
    const table = tableOf(bad, parts, layout, 5)
    assert.throws(() => table.readRows?.(18, 22), {
      code: 'WEIGHTS_INVALID',
      message: 'tensor b must be finite, got NaN at 33',
    })
    assert.ok(table.readRows?.(14, 20))
  })

  test('refuses more rows than ids can name', () => {
    const layoutOfMany = { ...layout, rows: 2 ** 31 }
    assert.throws(() => tableOf(source, parts, layoutOfMany, 5), {
      code: 'WEIGHTS_INVALID',
      message: /at most 2147483647 rows together, got 2147483648/,
    })
  })

  test('comes out of a safetensors file a few rows at a time, as it is as a whole', (t) => {
    const folder = tempFolder(t)
    const rows = randomRows(1000, 3)
    const half = new Float16Array(rows.map((x) => x / 1000))
    writeFileSync(
      `${folder}/w.safetensors`,
      safetensorsBytes({
        full: { dtype: 'F32', shape: [1000, 3], data: new Uint8Array(rows.buffer) },
        half: { dtype: 'F16', shape: [1000, 3], data: new Uint8Array(half.buffer) },
      }),
    )
    const opened = openSafetensors(`${folder}/w.safetensors`)
    t.after(() => opened.close())
    for (const name of ['full', 'half']) {
      const whole = opened.read(name)
      for (const [start, end] of [
        [0, 1000],
        [0, 1],
        [999, 1000],
        [500, 700],
        [3, 3],
      ] as const) {
        assert.deepEqual(opened.readRows(name, start, end), whole.subarray(start * 3, end * 3))
      }
    }
  })
})

test('memory is that of a chunk: 8 MiB of rows at a time, whatever the table’s size', () => {
  const asked: [number, number][] = []
  const readRows = (start: number, end: number) => {
    asked.push([start, end])
    return new Float32Array(0)
  }
  const read = () => assert.fail('the whole table was read')
  // 40 GB of float32.
  const source = sourceOf(new Map([['t', { dims: [10_000_000, 1024], read, readRows }]]))
  const chunks = [...rowChunks(source, 't')]
  assert.equal(chunks.length, Math.ceil(10_000_000 / 2048))
  assert.ok(asked.every(([start, end], i) => start === i * 2048 && end <= start + 2048))
  assert.equal(asked.at(-1)?.[1], 10_000_000)
  assert.deepEqual(tensorsOf(source).get('t')?.dims, [10_000_000, 1024])
})

test('--table may not be wider than what is computed with it', () => {
  assert.equal(parseTable('int8', 'fp16'), 'int8')
  assert.equal(parseTable('fp32', 'fp32'), 'fp32')
  for (const [value, precision] of [
    ['fp32', 'fp16'],
    ['int4', 'fp32'],
    ['', 'fp32'],
  ] as const) {
    assert.throws(() => parseTable(value, precision), {
      code: 'INVALID_REQUEST',
      message: /--table must be .*fp16 or int8 in fp\d\d, got/,
    })
  }
})
