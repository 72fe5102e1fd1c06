import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { KvQuestion } from '../cache/decide.js'
import { userHash } from '../cache/key.js'
import type { HistoryInput } from '../model/request.js'
import { smallConfig } from '../test/fixtures.js'
import { createPrices } from './price.js'

/** Two context tokens, 32 events at most; 1 ms per token to compute, 1 per candidate. */
function pricesOf(covered = 0, slackEvents = 0) {
  const asked: KvQuestion[] = []
  const prices = createPrices({
    costs: {
      decide(question) {
        asked.push(question)
        const { tokens, covered1, candidates } = question
        return { decision: 'append', predictedMs: tokens - covered1 + candidates }
      },
      priceOf: (decision, { tokens, candidates, covered1 }) => {
        return { decision, predictedMs: 1000 + tokens - covered1 + candidates }
      },
      prefillMs: (newTokens) => newTokens,
      scoreMs: (candidates, tokens) => candidates + tokens / 100,
    },
    config: smallConfig(),
    slackEvents,
    microBatchSize: 4,
    tokensOf: () => covered,
  })
  return { ...prices, asked }
}

const user = userHash('u')
const event = { item: '1', time: 5 }
const input = (events: number, rest: Partial<HistoryInput> = {}): HistoryInput => ({
  user: { id: 'u' },
  histories: [Array(events).fill(event)],
  series: {},
  time: 10,
  ...rest,
})

describe('createPrices', () => {
  test('counts tokens of all sources up to what the model holds', () => {
    const { ofRanking } = pricesOf()
    assert.equal(ofRanking(input(10), user, 7, false), 2 + 20 + 7)
    const more = input(10, {
      histories: [Array(10).fill(event), [event]],
      series: { city: [{ value: 1, time: 1 }] },
    })
    assert.equal(ofRanking(more, user, 7, false), 2 + 24 + 7)
    assert.equal(ofRanking(input(1000), user, 7, false), 66 + 7)
  })

  test('a full history is as long as its window', () => {
    const { ofRanking } = pricesOf(0, 8)
    assert.equal(ofRanking(input(35), user, 1, false), 2 + 2 * 27 + 1)
  })

  test('what tier 1 holds of the user costs nothing again', () => {
    const { ofRanking, ofPrefetch, asked } = pricesOf(12)
    assert.equal(ofRanking(input(10), user, 7, false), 22 - 12 + 7)
    assert.equal(ofRanking(input(2), user, 7, false), 7, 'no more than the history has')
    assert.deepEqual(
      asked.map(({ covered1, microBatchSize }) => [covered1, microBatchSize]),
      [
        [12, 4],
        [6, 4],
      ],
    )
    assert.equal(ofPrefetch(input(10), user, false), 10)
    assert.equal(ofPrefetch(input(2), user, false), 0)
  })

  test('without events nothing is found in tier 1', () => {
    const { ofRanking, asked } = pricesOf(12)
    assert.equal(ofRanking(input(0), user, 7, false), 1000 + 2 + 7)
    assert.deepEqual(asked, [])
  })

  test('a stored history counts as the longest, then as those that were read, or as the user’s K/V', () => {
    const unknown = pricesOf()
    assert.equal(unknown.ofRanking(input(0), user, 1, true), 66 + 1)
    for (let i = 0; i < 200; i++) unknown.observeStored(20)
    assert.ok(Math.abs(unknown.ofRanking(input(0), user, 1, true) - (20 + 1)) < 0.1)
    assert.equal(pricesOf(30).ofRanking(input(0), user, 1, true), 1)
  })
})
