import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { chooseRoute, paysToKeep } from './policy.js'

describe('chooseRoute', () => {
  test('ranks in one pass what fits one micro-batch and has no K/V to keep, for all small inputs', () => {
    for (const keepsKv of [true, false]) {
      for (let events = 0; events <= 3; events++) {
        for (let candidates = 0; candidates <= 20; candidates++) {
          for (let microBatchSize = 1; microBatchSize <= 20; microBatchSize++) {
            const input = { events, candidates, microBatchSize, keepsKv }
            const isOnePass = candidates <= microBatchSize && (events === 0 || !keepsKv)
            const expected = isOnePass ? 'onePass' : 'cached'
            assert.equal(chooseRoute(input), expected, JSON.stringify(input))
          }
        }
      }
    }
  })
})

describe('paysToKeep', () => {
  test('is true exactly where two requests cost less with K/V than without', () => {
    for (let prefillMs = 0; prefillMs <= 6; prefillMs++) {
      for (let scoreMs = 0; scoreMs <= 6; scoreMs++) {
        for (let rankMs = 0; rankMs <= 6; rankMs++) {
          const withKv = prefillMs + scoreMs + scoreMs
          const without = rankMs + rankMs
          assert.equal(paysToKeep({ prefillMs, scoreMs, rankMs }), withKv <= without)
        }
      }
    }
  })

  test('keeps K/V where one pass costs what a prefill and a score do', () => {
    assert.ok(paysToKeep({ prefillMs: 260, scoreMs: 36, rankMs: 296 }))
  })
})
