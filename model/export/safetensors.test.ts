import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import {
  float32Bytes,
  type RawTensor,
  safetensorsBytes,
  safetensorsFile,
  tempFolder,
} from '../../test/fixtures.js'
import { RankError } from '../errors.js'
import { createRandom } from '../random.js'
import { openSafetensors } from './safetensors.js'

const MEGABYTE = 2 ** 20

const folder = tempFolder({ after })
const file = `${folder}/x.safetensors`

function open(bytes: Uint8Array) {
  writeFileSync(file, bytes)
  return openSafetensors(file)
}

/** All tensors of a file, read. */
function readAll(bytes: Uint8Array): Map<string, Float32Array> {
  const opened = open(bytes)
  try {
    return new Map(opened.names.map((name) => [name, opened.read(name)]))
  } finally {
    opened.close()
  }
}

function assertRefused(bytes: Uint8Array, message: RegExp, what = String(message)) {
  const before = process.memoryUsage().arrayBuffers
  assert.throws(() => open(bytes), { name: 'RankError', code: 'WEIGHTS_INVALID', message }, what)
  const grown = process.memoryUsage().arrayBuffers - before
  assert.ok(grown < bytes.length * 4 + MEGABYTE, `${what}: refusing it took ${grown} bytes`)
}

const SMALL: { readonly [name: string]: RawTensor } = {
  a: { dtype: 'F32', shape: [2, 2], data: float32Bytes([1, -2, 0.5, 1e30]) },
  b: { dtype: 'F16', shape: [3], data: Uint8Array.of(0, 0x3c, 0, 0xc0, 1, 0) },
  c: { dtype: 'BF16', shape: [], data: Uint8Array.of(0x80, 0x3f) },
}

/** A header of one tensor over `bytes` data bytes, F32 and filling them unless `entry` says otherwise. */
function oneTensor(entry: object, bytes = 8): Buffer {
  const whole = { dtype: 'F32', shape: [bytes / 4], data_offsets: [0, bytes], ...entry }
  return safetensorsFile(JSON.stringify({ x: whole }), new Uint8Array(bytes))
}

describe('openSafetensors: what is right', () => {
  test('reads back names, shapes and values of F32, F16 and BF16', () => {
    const opened = open(safetensorsBytes(SMALL))
    assert.deepEqual(opened.names, ['a', 'b', 'c'])
    assert.deepEqual(opened.names.map(opened.dims), [[2, 2], [3], []])
    assert.deepEqual([...opened.read('a')], [1, -2, 0.5, Math.fround(1e30)])
    assert.deepEqual([...opened.read('b')], [1, -2, 2 ** -24])
    assert.deepEqual([...opened.read('c')], [1])
    opened.close()
  })

  test('widens all 65,536 bit patterns of F16 and of BF16 as IEEE 754 says', () => {
    const patterns = Uint16Array.from({ length: 65_536 }, (_, bits) => bits)
    const data = new Uint8Array(patterns.buffer)
    const tensor = (dtype: string) => ({ dtype, shape: [65_536], data })
    const read = readAll(safetensorsBytes({ half: tensor('F16'), brain: tensor('BF16') }))
    for (const bits of patterns) {
      assert.ok(Object.is(read.get('half')?.[bits], widen(bits, 5, 10)), `F16 ${bits}`)
      assert.ok(Object.is(read.get('brain')?.[bits], widen(bits, 8, 7)), `BF16 ${bits}`)
    }
  })

  test('keeps metadata out, takes padding spaces, no tensors, empty tensors and any order of entries', () => {
    const data = float32Bytes([1, 2])
    const late = { dtype: 'F32', shape: [1], data_offsets: [4, 8] }
    const early = { dtype: 'F32', shape: [1], data_offsets: [0, 4] }
    const empty = { dtype: 'F32', shape: [0, 5], data_offsets: [4, 4] }
    const header = JSON.stringify({ __metadata__: { format: 'pt' }, late, early, empty })
    const read = readAll(safetensorsFile(`${header}   `, data))
    assert.deepEqual([...(read.get('late') ?? [])], [2])
    assert.deepEqual([...(read.get('early') ?? [])], [1])
    assert.deepEqual([...(read.get('empty') ?? [1])], [])
    assert.deepEqual(open(safetensorsFile('{}')).names, [])
  })

  test('reads whole numbers, which buffers of state dicts are', () => {
    const data = new Uint8Array(BigInt64Array.of(1n, -3n, 2n ** 30n).buffer)
    const read = readAll(safetensorsBytes({ masks: { dtype: 'I64', shape: [3], data } }))
    assert.deepEqual([...(read.get('masks') ?? [])], [1, -3, 2 ** 30])
  })

  test('lists tensors of other types and refuses to read them', () => {
    for (const dtype of ['F64', 'I8', 'BOOL', 'f32', 'constructor', '__proto__', '']) {
      const opened = open(oneTensor({ dtype, shape: [3] }))
      assert.deepEqual(opened.names, ['x'])
      assert.throws(() => opened.read('x'), { code: 'WEIGHTS_INVALID', message: /must be F32/ })
      opened.close()
    }
  })

  test('takes names like __proto__ and constructor for what they are: names', () => {
    const entry = (at: number) => `{"dtype":"F32","shape":[1],"data_offsets":[${at},${at + 4}]}`
    const names = ['__proto__', 'constructor', 'toString', 'hasOwnProperty']
    const header = names.map((name, i) => `"${name}":${entry(i * 4)}`).join()
    const opened = open(safetensorsFile(`{${header}}`, float32Bytes([1, 2, 3, 4])))
    assert.deepEqual(opened.names, names)
    assert.deepEqual(
      names.flatMap((name) => [...opened.read(name)]),
      [1, 2, 3, 4],
    )
    assert.throws(() => opened.dims('valueOf'), { code: 'WEIGHTS_INVALID' })
    opened.close()
  })
})

describe('openSafetensors: what is broken or hostile', () => {
  test('refuses every truncation of a file', () => {
    const bytes = safetensorsBytes(SMALL)
    for (let length = 0; length < bytes.length; length++) {
      assertRefused(bytes.subarray(0, length), /./, `${length} of ${bytes.length} bytes`)
    }
  })

  test('refuses a file that is missing, a folder, and bytes behind the data', () => {
    for (const path of [`${folder}/none`, folder]) {
      assert.throws(() => openSafetensors(path), { code: 'WEIGHTS_INVALID' }, path)
    }
    const longer = Buffer.concat([safetensorsBytes(SMALL), Buffer.alloc(1)])
    assertRefused(longer, /cover 24 of 25 data bytes/)
  })

  test('refuses a header length that lies, before it reserves the memory', () => {
    for (const claimed of [2n ** 63n, 2n ** 64n - 1n, 2n ** 53n, BigInt(16 * MEGABYTE) + 1n]) {
      assertRefused(safetensorsFile('{}', new Uint8Array(8), claimed), /at most 16777216 bytes/)
    }
    for (const claimed of [BigInt(16 * MEGABYTE), 1000n, 11n]) {
      assertRefused(safetensorsFile('{}', new Uint8Array(8), claimed), /header claims/)
    }
    assertRefused(safetensorsFile('{}', new Uint8Array(8), 1n), /not JSON/)
    assertRefused(safetensorsFile('{}', new Uint8Array(8), 0n), /not JSON/)
  })

  test('refuses headers that are no JSON object of entries', () => {
    for (const header of ['', 'x', '{', '{"a":}', '\u0000', '{"a":1}}', "{'a':1}"]) {
      assertRefused(safetensorsFile(header), /not JSON/, header)
    }
    for (const header of ['[]', 'null', '1', '"x"', 'true', '[{}]']) {
      assertRefused(safetensorsFile(header), /must be a JSON object/, header)
    }
    for (const entry of ['null', '1', '"x"', '[]', '{}', '{"dtype":1}', '{"dtype":"F32"}']) {
      assertRefused(safetensorsFile(`{"a":${entry}}`), /tensor "a"/, entry)
    }
  })

  test('refuses headers nested deeper than a stack', () => {
    const depth = 200_000
    const nest = (open: string, close: string) => open.repeat(depth) + close.repeat(depth)
    assertRefused(safetensorsFile(nest('[', ']')), /must be a JSON object/)
    assertRefused(safetensorsFile(`{"a":{"dtype":"F32","shape":${nest('[', ']')}}}`), /tensor "a"/)
    const offsets = `{"a":{"dtype":"F32","shape":[],"data_offsets":${nest('{"b":', '}').replace('{}', '{"b":1}')}}}`
    assertRefused(safetensorsFile(offsets), /tensor "a"|not JSON/)
  })

  test('refuses offsets that are negative, fractional, reversed, outside, or no pair', () => {
    for (const offsets of [
      [-4, 4],
      [0, -8],
      [0.5, 8],
      [8, 0],
      [0, 12],
      [0, 2 ** 53],
      [0, 1e300],
      [4, 4, 4],
      [0],
      [],
      ['0', '8'],
      [null, 8],
      { 0: 0, 1: 8, length: 2 },
      'ab',
    ]) {
      assertRefused(oneTensor({ data_offsets: offsets }), /within 8 data bytes/)
    }
  })

  test('refuses holes and overlaps between tensors', () => {
    const two = (a: number[], b: number[], bytes: number) => {
      const entry = (at: number[]) => ({
        dtype: 'F32',
        shape: [((at[1] ?? 0) - (at[0] ?? 0)) / 4],
        data_offsets: at,
      })
      return safetensorsFile(JSON.stringify({ a: entry(a), b: entry(b) }), new Uint8Array(bytes))
    }
    assert.equal(open(two([0, 8], [8, 16], 16)).names.length, 2)
    assertRefused(two([0, 8], [4, 12], 12), /starts at byte 4, expected 8/)
    assertRefused(two([0, 8], [0, 8], 8), /starts at byte 0, expected 8/)
    assertRefused(two([0, 8], [12, 16], 16), /starts at byte 12, expected 8/)
    assertRefused(two([4, 8], [8, 16], 16), /starts at byte 4, expected 0/)
    assertRefused(two([0, 8], [8, 12], 16), /cover 12 of 16/)
  })

  test('refuses shapes that are huge, overflow, or do not fill their bytes', () => {
    for (const shape of [
      [3],
      [1],
      [],
      [2, 2],
      [0],
      [2 ** 32],
      [2 ** 32, 2 ** 32],
      // 2^64 elements: 0 in 64 bit arithmetic.
      [2 ** 32, 2 ** 32, 1],
      // 2^62 x 4 bytes wraps to 0 as well.
      [2 ** 31, 2 ** 31],
      new Array(8).fill(2 ** 32),
    ]) {
      assertRefused(oneTensor({ shape }), /does not fill its 8 bytes/)
    }
    for (const shape of [
      [2 ** 33],
      [-2],
      [1.5],
      ['2'],
      [null],
      [[2]],
      new Array(9).fill(1),
      2,
      '2',
      null,
    ]) {
      assertRefused(oneTensor({ shape }), /must have at most 8 dimensions/)
    }
  })

  test('refuses more than 100,000 tensors and names longer than 512', () => {
    const entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    const header = (count: number) =>
      `{${Array.from({ length: count }, (_, i) => `"${i}":${entry}`).join()}}`
    assert.equal(open(safetensorsFile(header(100_000))).names.length, 100_000)
    writeFileSync(file, safetensorsFile(header(100_001)))
    assert.throws(() => openSafetensors(file), { message: /at most 100000 tensors, got 100001/ })
    assertRefused(safetensorsFile(`{"${'n'.repeat(513)}":${entry}}`), /name longer than 512/)
  })

  test('answers 5,000 random changes of the header with success or WEIGHTS_INVALID', () => {
    const seed = 42
    const random = createRandom(seed)
    const original = safetensorsBytes(SMALL)
    const headerEnd = 8 + Number(original.readBigUInt64LE())
    let refused = 0
    for (let round = 0; round < 5000; round++) {
      const bytes = Buffer.from(original)
      const changes = 1 + Math.floor(random() * 3)
      for (let i = 0; i < changes; i++) {
        const at = Math.floor(random() * headerEnd)
        // A flipped bit, a random byte, or a digit: digits are what numbers are made of.
        const kind = random()
        const flipped = (bytes[at] ?? 0) ^ (1 << Math.floor(random() * 8))
        const digit = 48 + Math.floor(random() * 10)
        bytes[at] = kind < 0.4 ? flipped : kind < 0.6 ? Math.floor(random() * 256) : digit
      }
      try {
        readAll(bytes)
      } catch (error) {
        refused++
        assert.ok(
          error instanceof RankError && error.code === 'WEIGHTS_INVALID',
          `seed ${seed}, round ${round}: ${error}`,
        )
      }
    }
    assert.ok(refused > 2000, `only ${refused} were refused`)
  })
})

/** The value of a 16-bit float with the given widths of exponent and mantissa. */
function widen(bits: number, exponentBits: number, mantissaBits: number): number {
  const sign = bits >> 15 ? -1 : 1
  const exponent = (bits >> mantissaBits) & (2 ** exponentBits - 1)
  const fraction = (bits & (2 ** mantissaBits - 1)) / 2 ** mantissaBits
  const bias = 2 ** (exponentBits - 1) - 1
  if (exponent === 2 ** exponentBits - 1) return fraction === 0 ? sign * Infinity : Number.NaN
  if (exponent === 0) return sign * fraction * 2 ** (1 - bias)
  return sign * (1 + fraction) * 2 ** (exponent - bias)
}
