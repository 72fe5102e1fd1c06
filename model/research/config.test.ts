import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { SMALL_RESEARCH } from '../../test/small-checkpoints.js'
import { divisorOf, parseConfig, statedOf } from '../config.js'
import { buildCandidates, buildHistory } from '../sequence.js'
import { createVocabulary } from '../vocabulary.js'

describe('a research config', () => {
  test('follows from the few numbers that upstream’s gin files give', () => {
    const config = parseConfig(SMALL_RESEARCH)
    assert.equal(divisorOf(config), 35)
    assert.deepEqual([config.maxTokens, config.positions, config.timeBuckets], [30, 35, 129])
    assert.deepEqual(config.itemFeatures, [{ name: 'id', rows: 41 }])
    assert.deepEqual(parseConfig(statedOf(config)), config)
  })

  test('refuses another divisor, items in buckets and what the paper’s model has', () => {
    const cases: readonly (readonly [object, RegExp])[] = [
      [{ divisor: 36 }, /\/divisor must be maxSequenceLen \+ maxOutputLen, 35, got 36/],
      [{ itemEncoding: { kind: 'bucket', edges: [1] } }, /\/itemEncoding must be row, voc/],
      [{ actions: ['click'] }, /unknown fields: actions/],
      [{ timeBuckets: 64 }, /\/timeBuckets must be 128, got 64/],
      [{ variant: 'Research' }, /\/variant must be one of "paper", "research", "dlrm-v3", got/],
    ]
    for (const [changes, message] of cases) {
      const config = { ...SMALL_RESEARCH, ...changes }
      assert.throws(() => parseConfig(config), { code: 'CONFIG_INVALID', message })
    }
  })
})

describe('tokens of a research model', () => {
  const vocabulary = createVocabulary(parseConfig(SMALL_RESEARCH), () => undefined)
  const [items, positions] = vocabulary.layout.tables.map(({ offset }) => offset)
  const input = {
    user: { id: 'u' },
    histories: [
      [
        { item: '5', time: 100 },
        { item: 'unknown', time: 130 },
        { item: '40', time: 200 },
      ],
    ],
    series: {},
    candidates: [{ item: '7' }, { item: '41' }],
    time: 260,
  }

  test('state item, position and the seconds to the next event; padding has no position', () => {
    const { tokens } = buildHistory(input, vocabulary)
    assert.deepEqual(
      [...tokens.rows],
      [...[(items ?? 0) + 5, positions, 30, 0], ...[items, 0, 70, 0]],
    )
    assert.deepEqual([...tokens.times], [100, 130])
  })

  test('let the last event travel with every candidate', () => {
    const { rows, warnings } = buildCandidates(input, vocabulary, buildHistory(input, vocabulary))
    const last = [(items ?? 0) + 40, (positions ?? 0) + 2, 60]
    assert.deepEqual([...rows], [...last, (items ?? 0) + 7, ...last, items])
    assert.equal(warnings[0]?.code, 'UNKNOWN_ITEM')
  })
})
