import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { SMALL_DLRM } from '../../test/small-checkpoints.js'
import { parseConfig } from '../config.js'
import type { RankInput } from '../request.js'
import { buildCandidates, buildHistory } from '../sequence.js'
import { createVocabulary } from '../vocabulary.js'
import { timeBucket } from './tokens.js'

const vocabulary = createVocabulary(parseConfig(SMALL_DLRM), () => undefined)
const { layout } = vocabulary
const offset = (table: string) => layout.tables.find(({ name }) => name === table)?.offset ?? -1

function input(changes: Partial<RankInput>): RankInput {
  const base = { user: { id: 'u' }, histories: [], series: {}, candidates: [], time: 10_000 }
  return { ...base, ...changes }
}

function tokensOf(request: RankInput): number[][] {
  const { rows } = buildHistory(request, vocabulary).tokens
  return Array.from({ length: rows.length / layout.slots }, (_, i) => [
    ...rows.subarray(i * layout.slots, (i + 1) * layout.slots),
  ])
}

describe('tokens of a dlrm-v3 model', () => {
  test('are a context token per slot, then one per event with its position from the end', () => {
    const request = input({
      user: { id: 'u', features: { country: 0, device: 2 } },
      histories: [
        [
          { item: '0', time: 10_000 - 9 * 60, features: { author: 8, maker: 0 } },
          { item: '39', time: 10_000, features: { author: 3 } },
          { item: 'unknown', time: 10_000 - 60 },
        ],
      ],
    })
    // A table's row 0 is for what nobody knows; row r of the checkpoint is the one behind r.
    const [items, people, countries, devices] = [
      offset('items'),
      offset('people'),
      offset('countries'),
      offset('devices'),
    ]
    assert.deepEqual(tokensOf(request), [
      [countries + 1, 0, 0, 0, 12, 1],
      [devices + 3, 0, 0, 1, 12, 2],
      [items + 1, people + 9, people + 1, 5, 3, 0],
      [items, people, people, 4, 1, 0],
      [items + 40, people + 4, people, 3, 0, 0],
    ])
  })

  test('zero a slot whose minimum the history does not reach, and one without a value', () => {
    const events = [1, 2].map((time) => ({ item: '1', time }))
    const features = { country: 2, device: 1 }
    const short = tokensOf(input({ user: { id: 'u', features }, histories: [events] }))
    assert.deepEqual(
      short.slice(0, 2).map(([row]) => row),
      [offset('countries') + 3, offset('devices')],
    )
    const enough = [...events, { item: '1', time: 3 }]
    const long = tokensOf(input({ user: { id: 'u', features: {} }, histories: [enough] }))
    assert.deepEqual(
      long.slice(0, 2).map(([row]) => row),
      [offset('countries'), offset('devices')],
    )
  })

  test('end positions at the table’s last row and time buckets at theirs', () => {
    const events = Array.from({ length: 30 }, (_, i) => ({ item: '1', time: i }))
    const tokens = tokensOf(input({ histories: [events], time: 1e9 }))
    assert.deepEqual(
      tokens.slice(2).map((token) => token[3]),
      Array.from({ length: 30 }, (_, i) => Math.min(2 + 30 - i, 19)),
    )
    assert.ok(tokens.every((token) => token[4] === 49))
  })

  test('of candidates stand where the context ends, in bucket 0', () => {
    const request = input({ candidates: [{ item: '7', features: { maker: 8 } }] })
    const { rows } = buildCandidates(request, vocabulary, buildHistory(request, vocabulary))
    assert.deepEqual(
      [...rows],
      [offset('items') + 8, offset('people'), offset('people') + 9, 2, 0, 0],
    )
  })
})

test('timeBucket is the whole root of the whole minutes, exact at every edge', () => {
  for (let t = 0; t < 6000; t++) {
    const edge = 60 * t * t
    assert.equal(timeBucket(edge), t, `t=${t}`)
    assert.equal(timeBucket(edge + 60 * (2 * t + 1) - 1), t, `end of t=${t}`)
  }
  for (const seconds of [-1, -1e9, 0, 59]) assert.equal(timeBucket(seconds), 0)
})
