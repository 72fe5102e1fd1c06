import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { chooseRoute } from './policy.js'

describe('chooseRoute', () => {
  test('ranks in one pass only what has no events and fits one micro-batch, for all small inputs', () => {
    for (let events = 0; events <= 3; events++) {
      for (let m = 0; m <= 20; m++) {
        for (let b = 1; b <= 20; b++) {
          const expected = events === 0 && m <= b ? 'onePass' : 'cached'
          assert.equal(chooseRoute(events, m, b), expected, `events=${events} m=${m} b=${b}`)
        }
      }
    }
  })
})
