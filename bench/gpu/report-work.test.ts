import assert from 'node:assert/strict'
import { test } from 'node:test'
import { returnsToPay } from './report-work.js'

test('kept K/V costs no more than passes from the found number of returns on, and more before it', () => {
  const grid = Array.from({ length: 12 }, (_, i) => i + 1)
  for (const prefillMs of grid) {
    for (const scoreMs of grid) {
      for (const rankMs of grid) {
        const found = returnsToPay({ prefillMs, scoreMs, rankMs })
        for (let returns = 0; returns <= 12; returns++) {
          const kept = prefillMs + (returns + 1) * scoreMs
          const passes = (returns + 1) * rankMs
          const message = `${prefillMs} + ${scoreMs} or ${rankMs}, ${returns} returns`
          assert.equal(found <= returns, kept <= passes, message)
        }
      }
    }
  }
})
