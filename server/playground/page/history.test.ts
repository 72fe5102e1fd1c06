import assert from 'node:assert/strict'
import { test } from 'node:test'
import { aboutItem, colourOf, kindsOf, legendOf } from './history.js'

const ACTIONS = ['click', 'like', 'share']

test('an event counts as its rarest action in this history', () => {
  const kinds = kindsOf(
    [
      { item: 'a', time: 1, actions: ['click'] },
      { item: 'b', time: 2, actions: ['click', 'like'] },
      { item: 'c', time: 3, actions: [] },
      { item: 'd', time: 4 },
      { item: 'e', time: 5, actions: ['click'] },
    ],
    ACTIONS,
  )
  assert.deepEqual(
    kinds.map(({ name }) => name),
    ['click', 'like', 'no action', 'not observed', 'click'],
  )
  assert.deepEqual(
    legendOf(kinds).map(({ name, count }) => `${name} ${count}`),
    ['click 2', 'like 1', 'no action 1', 'not observed 1'],
  )
})

test('colours go by the model’s order, around, and grey for what it does not have', () => {
  assert.deepEqual([0, 4, 5, -1].map(colourOf), ['k1', 'k5', 'k1', 'k6'])
})

test('an item is described by its catalogue features, missing ones left out', () => {
  const catalogue = {
    features: ['author', 'tag', 'duration'],
    items: { '7': [null, '39', 66_600] },
  }
  assert.equal(aboutItem('7', catalogue), 'tag 39 · 1:07')
  assert.equal(aboutItem('constructor', catalogue), '')
  assert.equal(aboutItem('7', undefined), '')
})
