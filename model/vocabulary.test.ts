import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { type Json, smallConfig, tempFolder } from '../test/fixtures.js'
import type { HstuConfig } from './config.js'
import type { Encoding } from './config-schema.js'
import { fnv1a } from './encoder.js'
import { writeIdIndex } from './export/id-list.js'
import type { FeatureValue } from './request.js'
import { createVocabulary, readVocabulary } from './vocabulary.js'

const LIST = { kind: 'vocabulary', file: 'ids.txt' } as const

const NO_FILES = (file: string): never => assert.fail(`unexpected read of ${file}`)

/** Encodes through the context slot `country` of a config that gives it this encoding. */
function encoder(rows: number, encoding: Encoding, files: { [file: string]: unknown } = {}) {
  const config = smallConfig({ context: [{ name: 'country', rows, encoding }] })
  const vocabulary = createVocabulary(config, (file) => files[file])
  const [slot] = vocabulary.context
  assert.ok(slot)
  return (value: FeatureValue | undefined) => slot.encode(value)
}

/** Rows of an item, relative to their tables. */
function itemRows(config: HstuConfig, files: { [file: string]: unknown } = {}) {
  const vocabulary = createVocabulary(config, (file) => files[file])
  return (item: string, features?: { [name: string]: FeatureValue }) => {
    const out = new Int32Array(vocabulary.layout.slots + 2).fill(-1)
    const isKnown = vocabulary.writeItem(item, features, out, 1)
    assert.equal(out[0], -1)
    assert.equal(out.at(-1), -1)
    const rows = config.itemFeatures.map(({ name }, s) => {
      const table = vocabulary.layout.tables.find((each) => each.name === `item.${name}`)
      return (out[s + 1] ?? 0) - (table?.offset ?? Number.NaN)
    })
    return { rows, isKnown }
  }
}

describe('encodings', () => {
  test('row: whole numbers in 1 .. rows-1, as number or digits, are rows; all else is row 0', () => {
    const encode = encoder(5, { kind: 'row' })
    for (let value = -3; value <= 9; value++) {
      const expected = value >= 1 && value <= 4 ? value : 0
      assert.equal(encode(value), expected, `${value}`)
      assert.equal(encode(String(value)), expected, `"${value}"`)
    }
    const strange = [undefined, '', ' ', ' 1', '1 ', '1.0', '0x1', '1e0', '+1', 'x', '__proto__']
    for (const value of [...strange, 1.5, Number.NaN, Infinity, 2 ** 32 + 1]) {
      assert.equal(encode(value), 0, String(value))
    }
  })

  test('vocabulary: the string at index i is row i + 1; numbers count as their digits', () => {
    const words = ['a', '', '7', 'constructor', '__proto__', 'toString']
    const encode = encoder(7, { kind: 'vocabulary', file: 'v.json' }, { 'v.json': words })
    words.forEach((word, i) => {
      assert.equal(encode(word), i + 1, word)
    })
    assert.equal(encode(7), 3)
    for (const value of [undefined, 'b', 'valueOf', 'hasOwnProperty', 0]) {
      assert.equal(encode(value), 0, String(value))
    }
  })

  test('vocabulary: refuses a file that is no list of strings or has another length than the table', () => {
    const refused = (content: unknown, message: RegExp) =>
      assert.throws(
        () => encoder(3, { kind: 'vocabulary', file: 'v.json' }, { 'v.json': content }),
        { code: 'CONFIG_INVALID', message },
      )
    for (const content of [undefined, null, {}, 'ab', [1, 2], ['a', null], { length: 2 }]) {
      refused(content, /v\.json must be a JSON array of strings/)
    }
    refused(['a'], /ctx\.country has 3 rows: v\.json must list 2 values, got 1/)
    refused(['a', 'b', 'c'], /got 3/)
    refused(['a', 'a'], /v\.json has "a" twice, at \/0 and \/1/)
  })

  test('vocabulary with buckets: other values are rows behind it, by FNV-1a, and nothing is unknown', () => {
    const words = ['a', 'b', 'c']
    const encoding = { kind: 'vocabulary', file: 'v.json', buckets: 7 } as const
    const encode = encoder(11, encoding, { 'v.json': words })
    assert.deepEqual(words.map(encode), [1, 2, 3])
    const golden = { 'new-1': 5, 'new-2': 3, новый: 6, '': 2 }
    for (const [value, bucket] of Object.entries(golden)) {
      assert.equal(fnv1a(value) % 7, bucket, value)
      assert.equal(encode(value), 4 + bucket, value)
    }
    assert.equal(encode(undefined), 0)
    const seen = new Set(Array.from({ length: 500 }, (_, i) => encode(i)))
    assert.deepEqual(
      [...seen].sort((a, b) => a - b),
      [4, 5, 6, 7, 8, 9, 10],
    )
    assert.throws(() => encoder(10, encoding, { 'v.json': words }), {
      code: 'CONFIG_INVALID',
      message: 'ctx.country has 10 rows, 7 of them buckets: v.json must list 2 values, got 3',
    })
  })

  test('vocabulary: a file that is no .json is a list of ids with an index', (t) => {
    const folder = tempFolder(t)
    writeFileSync(`${folder}/ids.txt`, 'x-1\nx-2\n7\n')
    writeIdIndex(`${folder}/ids.txt`, `${folder}/ids.txt.index`, 3)
    const itemFeatures = [{ name: 'id', rows: 6, encoding: { ...LIST, buckets: 2 } }]
    const vocabulary = readVocabulary(smallConfig({ itemFeatures, auxiliary: [] }), folder)
    const out = new Int32Array(1)
    const offset = vocabulary.layout.tables.find(({ name }) => name === 'item.id')?.offset ?? 0
    const rowOf = (item: string) => {
      assert.equal(vocabulary.writeItem(item, undefined, out, 0), true)
      return (out[0] ?? 0) - offset
    }
    assert.deepEqual(['x-1', 'x-2', '7', 'x-3'].map(rowOf), [1, 2, 3, 4 + (fnv1a('x-3') % 2)])
    const asked = ['x-3', '7', 'x-1', 'x-4']
    assert.deepEqual([...(vocabulary.idRows?.(asked) ?? [])], asked.map(rowOf))
    assert.deepEqual(vocabulary.knownItems(), ['x-1', 'x-2', '7'])
    assert.deepEqual([0, 1, 2, 3, 4, 5, 6].map(vocabulary.itemAt), [
      undefined,
      'x-1',
      'x-2',
      '7',
      undefined,
      undefined,
      undefined,
    ])
    const tooMany = [{ name: 'id', rows: 6, encoding: LIST }]
    assert.throws(
      () => readVocabulary(smallConfig({ itemFeatures: tooMany, auxiliary: [] }), folder),
      {
        code: 'CONFIG_INVALID',
        message: 'item.id has 6 rows: ids.txt must list 5 values, got 3',
      },
    )
  })

  test('hash: 1 + FNV-1a mod (rows - 1), the published values', () => {
    const published = { '': 0x811c9dc5, a: 0xe40c292c, b: 0xe70c2de5, foobar: 0xbf9cf968 }
    for (const [text, hash] of Object.entries(published)) {
      assert.equal(fnv1a(text), hash, text)
      assert.equal(encoder(1000, { kind: 'hash' })(text), 1 + (hash % 999), text)
    }
    // UTF-8 bytes, not UTF-16 units: e9 is c3 a9.
    let hash = 0x811c9dc5n
    for (const byte of [0xc3n, 0xa9n]) hash = ((hash ^ byte) * 0x01000193n) % 2n ** 32n
    assert.equal(fnv1a('é'), Number(hash))
  })

  test('hash: never row 0 for a value, always row 0 without one', () => {
    for (let rows = 2; rows <= 9; rows++) {
      const encode = encoder(rows, { kind: 'hash' })
      const seen = new Set(Array.from({ length: 500 }, (_, i) => encode(i)))
      assert.deepEqual(
        [...seen].sort(),
        Array.from({ length: rows - 1 }, (_, i) => i + 1),
      )
      assert.equal(encode(undefined), 0)
      assert.equal(encode('constructor'), encode('constructor'))
    }
  })

  test('bucket: row 1 + the number of edges <= x, around every edge of every list up to 9', () => {
    for (let count = 0; count <= 9; count++) {
      const edges = Array.from({ length: count }, (_, i) => i * i - 3.5)
      const encode = encoder(count + 2, { kind: 'bucket', edges })
      for (const edge of [...edges, -1e9, 0, 1e9]) {
        for (const x of [edge - 1e-9, edge, edge + 1e-9, edge - 1, edge + 1]) {
          const expected = 1 + edges.filter((e) => e <= x).length
          assert.equal(encode(x), expected, `${x} in ${edges}`)
          assert.equal(encode(String(x)), expected, `"${x}" in ${edges}`)
        }
      }
      assert.equal(encode(Infinity), count + 1)
      assert.equal(encode(-Infinity), 1)
      for (const value of [undefined, '', ' ', 'x', Number.NaN]) {
        assert.equal(encode(value), 0, String(value))
      }
    }
  })
})

describe('items', () => {
  const catalogue = {
    features: ['tag', 'author'],
    items: JSON.parse('{"1":[2,3],"2":[null,4],"77":[5,5],"constructor":[1,1],"__proto__":[3,2]}'),
  }
  const config = smallConfig({ catalogue: 'c.json' })
  const files = { 'c.json': catalogue }

  test('without a catalogue an item is its id row and the features that the request gives', () => {
    const rowsOf = itemRows(smallConfig())
    assert.deepEqual(rowsOf('30'), { rows: [30, 0, 0], isKnown: true })
    assert.deepEqual(rowsOf('31'), { rows: [0, 0, 0], isKnown: false })
    assert.deepEqual(rowsOf('3', { author: 8, tag: '5' }), { rows: [3, 8, 5], isKnown: true })
    assert.deepEqual(rowsOf('x', { author: 9, tag: 1 }), { rows: [0, 0, 1], isKnown: false })
  })

  test('a feature of the request wins over the catalogue’s; the id is the item’s alone', () => {
    const rowsOf = itemRows(config, files)
    assert.deepEqual(rowsOf('1'), { rows: [1, 3, 2], isKnown: true })
    assert.deepEqual(rowsOf('2'), { rows: [2, 4, 0], isKnown: true })
    assert.deepEqual(rowsOf('1', { tag: 4 }).rows, [1, 3, 4])
    assert.deepEqual(rowsOf('1', { tag: 99 }).rows, [1, 3, 0])
    assert.deepEqual(rowsOf('1', { id: 5 }).rows, [1, 3, 2])
    assert.deepEqual(rowsOf('77'), { rows: [0, 5, 5], isKnown: false })
    assert.deepEqual(rowsOf('3'), { rows: [3, 0, 0], isKnown: true })
  })

  test('items and features named as what every object inherits are just names', () => {
    const rowsOf = itemRows(config, files)
    assert.deepEqual(rowsOf('constructor').rows, [0, 1, 1])
    assert.deepEqual(rowsOf('__proto__').rows, [0, 2, 3])
    assert.deepEqual(rowsOf('toString').rows, [0, 0, 0])
    assert.deepEqual(rowsOf('1', JSON.parse('{"__proto__":{"tag":4}}')).rows, [1, 3, 2])
    const named = smallConfig({
      itemFeatures: [
        { name: 'id', rows: 31 },
        { name: 'constructor', rows: 9 },
      ],
      catalogue: 'c.json',
    })
    const content = { features: ['constructor'], items: { 1: [6] } }
    assert.deepEqual(itemRows(named, { 'c.json': content })('1', {}).rows, [1, 6])
  })

  test('refuses a catalogue that does not fit, naming the file and the item', () => {
    const refused = (content: Json, message: RegExp) =>
      assert.throws(() => createVocabulary(config, () => content), {
        code: 'CONFIG_INVALID',
        message,
      })
    for (const content of [null, 1, [], {}, { features: [] }, { features: {}, items: {} }]) {
      refused(content, /c\.json must be \{features/)
    }
    refused({ features: ['tag', 'none'], items: {} }, /names "none", which is no item feature/)
    refused({ features: ['tag'], items: { 5: [] } }, /must give item "5" 1 values, got \[\]/)
    refused({ features: ['tag'], items: { 5: 1 } }, /must give item "5" 1 values, got 1/)
  })

  test('lists the items that can be known', () => {
    const of = (changes: object, read: (file: string) => unknown) =>
      createVocabulary(smallConfig(changes), read).knownItems()
    assert.deepEqual(of({ catalogue: 'c.json' }, () => catalogue).sort(), [
      '1',
      '2',
      '77',
      '__proto__',
      'constructor',
    ])
    assert.equal(of({}, NO_FILES).length, 30)
    const many = of({ itemFeatures: [{ name: 'id', rows: 10_000_001 }], auxiliary: [] }, NO_FILES)
    assert.deepEqual([many.length, many[0], many.at(-1)], [100_000, '1', '10000000'])
  })
})
