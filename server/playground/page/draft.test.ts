import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { LIMITS, rankerOf } from '../../../test/plain-ranker.js'
import { parseRank } from '../../parse.js'
import {
  addEvent,
  type Draft,
  exampleDraft,
  itemOf,
  readDraft,
  removeEvent,
  replaceEvent,
} from './draft.js'

const DRAFT: Draft = {
  user: { id: 'u' },
  history: [
    { item: 'a', time: 10 },
    { item: 'b', time: 20, actions: ['click'] },
  ],
  candidates: ['x', { item: 'y' }],
  time: 30,
}

const items = ({ history }: Draft) => history.map(({ item }) => item).join('')

describe('editing a draft', () => {
  test('puts an event behind those of its time and leaves the query where it is', () => {
    const next = addEvent(DRAFT, { item: 'c', time: 10 })
    assert.equal(items(next), 'acb')
    assert.equal(next.time, 30)
    assert.equal(items(DRAFT), 'ab', 'the draft itself stays')
  })

  test('moves the query past an event that it would not follow', () => {
    const next = addEvent(DRAFT, { item: 'c', time: 30 })
    assert.equal(items(next), 'abc')
    assert.equal(next.time, 90)
  })

  test('removes an event, and gives a changed one its new place', () => {
    assert.equal(items(removeEvent(DRAFT, 0)), 'b')
    assert.equal(items(replaceEvent(DRAFT, 0, { item: 'A', time: 25 })), 'bA')
  })
})

describe('reading a draft', () => {
  test('keeps what the page does not know, fills in history and time', () => {
    const series = { city: [{ value: 'Paris', time: 3 }] }
    assert.deepEqual(readDraft({ user: { id: 'u' }, candidates: ['x'], series }, 99), {
      user: { id: 'u' },
      history: [],
      candidates: ['x'],
      series,
      time: 99,
    })
    assert.deepEqual(readDraft(DRAFT, 99), DRAFT)
    assert.deepEqual(DRAFT.candidates.map(itemOf), ['x', 'y'])
  })

  for (const [what, value, message] of [
    ['no object', [], /^the request must be a JSON object, got \[\]$/],
    ['no user', { candidates: [] }, /^\/user must be an object \{id, features\?\}, got nothing$/],
    ['a user without id', { user: {}, candidates: [] }, /^\/user\/id must be a string/],
    ['no candidates', { user: { id: 'u' } }, /^\/candidates must be an array, got nothing$/],
    [
      'a candidate of neither kind',
      { ...DRAFT, candidates: ['x', 5] },
      /^\/candidates\/1 must .* got 5$/,
    ],
    ['an event without item', { ...DRAFT, history: [{ time: 1 }] }, /^\/history\/0\/item must/],
    ['a time in words', { ...DRAFT, history: [{ item: 'a', time: 'now' }] }, /got "now"$/],
    ['a single action', { ...DRAFT, history: [{ item: 'a', time: 1, actions: 'x' }] }, /\/actions/],
    ['a query time in words', { ...DRAFT, time: 'now' }, /^\/time must be a number of seconds/],
  ] as const) {
    test(`refuses ${what}`, () => {
      assert.throws(() => readDraft(value, 0), { message })
    })
  }
})

describe('the generated example', () => {
  const { model } = rankerOf()

  test('is a request that the service takes, of items and actions that the model knows', () => {
    const draft = exampleDraft(model, 1_700_000_000)
    const { input } = parseRank(draft, LIMITS, 0)
    const used = [...draft.history.map(({ item }) => item), ...draft.candidates.map(itemOf)]
    assert.ok(used.every((item) => model.exampleItems.includes(item)))
    assert.ok(draft.history.some(({ actions }) => actions?.length === 1))
    assert.ok(input.histories[0]?.every(({ time }) => time < input.time))
  })

  test('has something to rank even where the model lists no items', () => {
    assert.deepEqual(exampleDraft({ ...model, exampleItems: [] }, 0).candidates, ['1', '2', '3'])
  })
})
