import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { SMALL_RESEARCH } from '../test/small-checkpoints.js'
import { parseConfig } from './config.js'
import { createVocabulary } from './vocabulary.js'

const IDS = ['b', 'c', 'a', '7']

function listOf(changes: object, files: { readonly [name: string]: unknown } = {}) {
  const config = parseConfig({ ...SMALL_RESEARCH, ...changes })
  return createVocabulary(config, (file) => files[file])
}

/** Everything that a list says, by place. */
function contentOf({ candidates, layout }: ReturnType<typeof listOf>) {
  assert.ok(candidates)
  const [items] = layout.tables
  const rows = candidates.rows(0, candidates.length)
  return Array.from({ length: candidates.length }, (_, place) => {
    const item = candidates.itemAt(place)
    assert.equal(candidates.placeOf(item), place)
    return [item, (rows[place] ?? 0) - (items?.offset ?? 0)]
  })
}

describe('the candidate list', () => {
  test('is every item of the table where the config names none', () => {
    const rows = contentOf(listOf({}))
    assert.deepEqual([rows.length, rows[0], rows.at(-1)], [40, ['1', 1], ['40', 40]])
    const { candidates } = listOf({})
    assert.deepEqual(
      ['0', '41', '', '01x'].map((item) => candidates?.placeOf(item)),
      [undefined, undefined, undefined, undefined],
    )
    assert.deepEqual([...(candidates?.rows(3, 5) ?? [])], [5, 6])
  })

  test('is the vocabulary where items have one', () => {
    const itemEncoding = { kind: 'vocabulary', file: 'ids.json' }
    const vocabulary = listOf({ items: 4, itemEncoding }, { 'ids.json': IDS })
    assert.deepEqual(
      contentOf(vocabulary),
      IDS.map((id, i) => [id, i + 1]),
    )
    assert.deepEqual(
      [vocabulary.itemAt(0), vocabulary.itemAt(4), vocabulary.itemAt(5)],
      [undefined, '7', undefined],
    )
  })

  test('is what the config’s file says, in its order, strings or whole numbers', () => {
    const files = { 'list.json': ['7', 3, '40'] }
    assert.deepEqual(contentOf(listOf({ candidates: 'list.json' }, files)), [
      ['7', 7],
      ['3', 3],
      ['40', 40],
    ])
  })

  test('has an item once, however its number is spelt', () => {
    for (const [list, spellings] of [
      [
        ['7', '12'],
        ['7', '07', '0007'],
      ],
      [
        ['07', '12'],
        ['7', '07', '0007'],
      ],
    ] as const) {
      const { candidates } = listOf({ candidates: 'list.json' }, { 'list.json': list })
      assert.equal(candidates?.itemAt(0), list[0])
      assert.deepEqual(
        [...spellings, '8', '070', 'x'].map((item) => candidates?.placeOf(item)),
        [0, 0, 0, undefined, undefined, undefined],
      )
    }
    assert.throws(() => listOf({ candidates: 'list.json' }, { 'list.json': ['12', '7', '07'] }), {
      code: 'CONFIG_INVALID',
      message: /lists "07" twice, at \/1 and \/2/,
    })
  })

  test('must be given where ids are hashed; ids that share a row have a place each', () => {
    const itemEncoding = { kind: 'hash' }
    assert.equal(listOf({ itemEncoding }).candidates, undefined)
    const ids = Array.from({ length: 100 }, (_, i) => `item ${i}`)
    const rows = contentOf(listOf({ itemEncoding, candidates: 'list.json' }, { 'list.json': ids }))
    assert.deepEqual(
      rows.map(([id]) => id),
      ids,
    )
    assert.ok(new Set(rows.map(([, row]) => row)).size <= 40)
  })

  test('is refused by the first entry that is wrong', () => {
    const cases: readonly (readonly [unknown, RegExp])[] = [
      [undefined, /list\.json must be a JSON array of item ids/],
      [{ 1: 2 }, /must be a JSON array of item ids/],
      [[], /at least one/],
      [['1', null], /must list strings or whole numbers, got null at \/1/],
      [['1', 2.5], /must list strings or whole numbers, got 2\.5 at \/1/],
      [['1', '2', 1], /lists "1" twice, at \/0 and \/2/],
      [['1', '41'], /must list items of the vocabulary, got "41" at \/1/],
      [['0'], /must list items of the vocabulary, got "0" at \/0/],
    ]
    for (const [value, message] of cases) {
      assert.throws(() => listOf({ candidates: 'list.json' }, { 'list.json': value }), {
        code: 'CONFIG_INVALID',
        message,
      })
    }
  })
})
