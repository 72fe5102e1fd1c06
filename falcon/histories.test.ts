import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createRandom } from '../model/random.js'
import type { HistoryEvent, HistoryInput, StoredHistory } from '../model/request.js'
import { buildHistory } from '../model/sequence.js'
import { createVocabulary } from '../model/vocabulary.js'
import { smallConfig } from '../test/fixtures.js'
import { createHistories } from './histories.js'

const SLACK = 2
const config = smallConfig({
  auxiliary: [{ name: 'city', table: 'aux.city', rows: 6, action: 'moved' }],
})
const vocabulary = createVocabulary(config, (file) => assert.fail(file))

function storedOf(events: number, random: () => number): StoredHistory {
  const event = (_: unknown, i: number): HistoryEvent => ({
    item: String(Math.floor(random() * 40)),
    time: 100 * i,
    ...(random() < 0.7 && { actions: random() < 0.5 ? ['click'] : ['nobodys'] }),
  })
  return { events: Array.from({ length: events }, event), older: Math.floor(random() * 3) }
}

describe('createHistories', () => {
  test('gives what building anew gives, whatever else is in a request and was asked for before', () => {
    const random = createRandom(3)
    const histories = createHistories(vocabulary, SLACK)
    const all = [0, 1, 2, 5, 40].map((events) => storedOf(events, random))
    const more: readonly Partial<HistoryInput>[] = [
      ...[{}, { time: 5000 }, { time: 150 }, { time: 0 }, { historyOffset: 3 }],
      ...[{ histories: [[{ item: '7', time: 120, actions: ['click'] }]] }, { histories: [[]] }],
      ...[{ series: { city: [{ value: '3', time: 50 }] } }, { series: { nobodys: [] } }],
      ...[{ user: { id: 'u', features: { country: '3' } } }, { user: { id: 'v' } }],
      ...[{ user: { id: 'u', features: { nobodys: 3 } } }],
    ]
    for (let i = 0; i < 400; i++) {
      const stored = all[Math.floor(random() * all.length)]
      const change = more[Math.floor(random() * more.length)]
      const input = { user: { id: 'u' }, histories: [], series: {}, time: 9000, ...change }
      const asked = stored === undefined ? input : { ...input, stored }
      assert.deepEqual(histories(asked), buildHistory(asked, vocabulary, SLACK))
    }
  })

  test('remembers the tokens of a stored history, and not of another that is equal', () => {
    const histories = createHistories(vocabulary, SLACK)
    const stored = storedOf(5, createRandom(4))
    const input = { user: { id: 'u' }, histories: [], series: {}, time: 9000, stored }
    assert.equal(histories({ ...input, time: 9999 }).tokens, histories(input).tokens)
    const equal = { ...input, stored: { ...stored } }
    assert.notEqual(histories(equal).tokens, histories(input).tokens)
  })
})
