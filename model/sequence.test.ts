import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { smallConfig } from '../test/fixtures.js'
import { createRandom } from './random.js'
import type { HistoryEvent, RankInput, SeriesEntry } from './request.js'
import { buildCandidates, buildHistory, firstOfEachRun } from './sequence.js'
import { createVocabulary } from './vocabulary.js'

const config = smallConfig({
  auxiliary: [
    { name: 'city', table: 'aux.city', rows: 6, action: 'moved' },
    { name: 'followed', table: 'item.author', action: 'share' },
  ],
})
const vocabulary = createVocabulary(config, (file) => assert.fail(file))
const { slots, tables } = vocabulary.layout
const offset = (name: string) => tables.find((t) => t.name === name)?.offset ?? Number.NaN
const IS_ACTION = 1 << config.actions.length

const event = (item: string, time: number, more: Partial<HistoryEvent> = {}): HistoryEvent => ({
  item,
  time,
  actions: [],
  ...more,
})

function input(changes: Partial<RankInput>): RankInput {
  return { user: { id: 'u' }, histories: [], series: {}, candidates: [], time: 1000, ...changes }
}

const build = (changes: Partial<RankInput>) => buildHistory(input(changes), vocabulary)

/** Per event: time, row of the first table that it names, and its action bits. */
function eventsOf({ tokens }: ReturnType<typeof build>) {
  const events = []
  for (let i = config.context.length; i < tokens.length; i += 2) {
    assert.equal(tokens.actions[i], 0, 'an item token has no action mask')
    assert.ok((tokens.actions[i + 1] ?? 0) & IS_ACTION, 'an action token says so')
    assert.equal(tokens.times[i], tokens.times[i + 1])
    assert.ok(tokens.rows.subarray((i + 1) * slots, (i + 2) * slots).every((row) => row === 0))
    const row = tokens.rows[i * slots] ?? 0
    const table = tables.findLast((each) => each.offset <= row)
    const mask = (tokens.actions[i + 1] ?? 0) & ~IS_ACTION
    events.push([tokens.times[i], table?.name, row - (table?.offset ?? 0), mask])
  }
  return events
}

describe('buildHistory', () => {
  test('merges stored events before all other sources of the same time', () => {
    const result = build({
      stored: { events: [event('1', 10), event('2', 20)], older: 0 },
      histories: [[event('3', 20)], [event('4', 5)]],
    })
    assert.deepEqual(
      eventsOf(result).map(([time, , row]) => [time, row]),
      [
        [5, 4],
        [10, 1],
        [20, 2],
        [20, 3],
      ],
    )
  })

  test('counts stored events that were not read among the dropped', () => {
    const events = Array.from({ length: 40 }, (_, i) => event('1', i))
    const all = build({ stored: { events, older: 0 } })
    const newest = build({ stored: { events: events.slice(8), older: 8 } })
    assert.deepEqual(newest, all)
    assert.ok(all.truncatedEvents >= 8)
    assert.equal(all.warnings[0]?.count, all.truncatedEvents)
  })

  test('an unknown action is an error of the request, and a warning of what is stored', () => {
    const known = event('1', 10, { actions: ['click'] })
    const gone = event('1', 10, { actions: ['gone', 'click'] })
    const result = build({ stored: { events: [gone, gone], older: 0 } })
    assert.deepEqual(
      eventsOf(result),
      eventsOf(build({ stored: { events: [known, known], older: 0 } })),
    )
    assert.deepEqual(result.warnings, [
      {
        code: 'UNKNOWN_ACTION',
        message: 'stored events: the model has no action "gone"',
        count: 2,
      },
    ])
    assert.throws(
      () => build({ stored: { events: [gone], older: 0 }, histories: [[], [known, gone]] }),
      {
        code: 'INVALID_REQUEST',
        path: '/histories/1/1/actions/0',
      },
    )
  })

  test('gives context tokens alone for an empty history, at the query time', () => {
    const { tokens, events, warnings } = build({ user: { id: 'u', features: { country: 3 } } })
    assert.equal(tokens.length, 2)
    assert.deepEqual([...tokens.times], [1000, 1000])
    assert.deepEqual(
      [...tokens.rows],
      [offset('ctx.country') + 3, 0, 0, offset('ctx.device'), 0, 0],
    )
    assert.deepEqual([...tokens.actions], [0, 0])
    assert.deepEqual([events, warnings], [0, []])
  })

  test('gives context tokens the time of the first kept event', () => {
    const events = Array.from({ length: 40 }, (_, i) => event('1', 100 + i))
    assert.equal(build({ histories: [events.slice(3)] }).tokens.times[1], 103 + 5)
    assert.equal(build({ histories: [events.slice(20)] }).tokens.times[0], 120)
  })

  test('merges sources by time; ties keep sources in order, then series in the manifest’s', () => {
    const got = build({
      histories: [
        [event('1', 10), event('2', 20), event('3', 20)],
        [event('4', 5), event('5', 20)],
      ],
      // Given in the other order: the manifest's counts.
      series: { followed: [{ value: 7, time: 20 }], city: [{ value: 2, time: 20 }] },
    })
    const moved = 1 << config.actions.indexOf('moved')
    const share = 1 << config.actions.indexOf('share')
    assert.deepEqual(eventsOf(got), [
      [5, 'item.id', 4, 0],
      [10, 'item.id', 1, 0],
      [20, 'item.id', 2, 0],
      [20, 'item.id', 3, 0],
      [20, 'item.id', 5, 0],
      [20, 'aux.city', 2, moved],
      [20, 'item.author', 7, share],
    ])
  })

  test('orders sources that are not in time order themselves', () => {
    const times = [9, 3, 7, 3, 1]
    const got = build({ histories: [times.map((time, i) => event(String(i + 1), time))] })
    assert.deepEqual(
      eventsOf(got).map(([time, , row]) => [time, row]),
      [
        [1, 5],
        [3, 2],
        [3, 4],
        [7, 3],
        [9, 1],
      ],
    )
  })

  test('an event of a series puts its row into the item’s place, item features add nothing', () => {
    const { tokens } = build({ series: { followed: [{ value: 7, time: 20 }] } })
    assert.deepEqual(
      [...tokens.rows.subarray(2 * slots, 3 * slots)],
      [offset('item.author') + 7, 0, 0],
    )
  })

  test('compresses runs of raw values: unknown ones that differ are two events, 1 and "1" too', () => {
    const series = (values: readonly SeriesEntry['value'][]) => ({
      city: values.map((value, i) => ({ value, time: i })),
    })
    const rowsOf = (values: readonly SeriesEntry['value'][]) =>
      eventsOf(build({ series: series(values) })).map(([time, , row]) => [time, row])
    assert.deepEqual(rowsOf([2, 2, 2]), [[0, 2]])
    assert.deepEqual(rowsOf([2, 3, 2, 2]), [
      [0, 2],
      [1, 3],
      [2, 2],
    ])
    assert.deepEqual(rowsOf(['x', 'x', 'y', 'y']), [
      [0, 0],
      [2, 0],
    ])
    assert.equal(rowsOf([1, '1']).length, 2)
  })

  test('truncates after compression and merging: the oldest events go, both tokens of each', () => {
    // (66 - 2) / 2 = 32 events fit.
    for (const count of [31, 32, 33, 34, 100]) {
      const history = Array.from({ length: count - 1 }, (_, i) => event('1', 100 + i))
      const repeats = Array.from({ length: 50 }, (_, i) => ({ value: 4, time: i }))
      const got = build({ histories: [history], series: { city: repeats } })
      const dropped = Math.max(0, count - 32)
      assert.equal(got.truncatedEvents, dropped)
      assert.equal(got.events, count - dropped)
      assert.equal(got.tokens.length, 2 + 2 * (count - dropped))
      // The series is the oldest event, so it is the first to go.
      assert.equal(eventsOf(got)[0]?.[0], dropped === 0 ? 0 : 100 + dropped - 1)
      assert.deepEqual(
        got.warnings,
        dropped === 0
          ? []
          : [
              {
                code: 'HISTORY_TRUNCATED',
                message: 'history holds at most 32 events; the oldest were dropped',
                count: dropped,
              },
            ],
      )
    }
  })

  test('never keeps half an event: an odd room loses one token', () => {
    for (let maxTokens = 2; maxTokens <= 12; maxTokens++) {
      const tight = createVocabulary(smallConfig({ maxTokens }), (file) => assert.fail(file))
      const history = Array.from({ length: 9 }, (_, i) => event('1', i))
      const { tokens, events } = buildHistory(input({ histories: [history] }), tight)
      assert.equal(events, Math.floor((maxTokens - 2) / 2))
      assert.equal(tokens.length, 2 + 2 * events)
      assert.ok(tokens.length <= maxTokens)
    }
  })

  test('tells no action from an action not observed', () => {
    const unobserved = 1 << config.actions.indexOf('unobserved')
    const { actions: _, ...bare } = event('1', 1)
    const got = build({
      histories: [[bare, event('1', 2), event('1', 3, { actions: ['like', 'click', 'like'] })]],
    })
    assert.deepEqual(
      eventsOf(got).map(([, , , mask]) => mask),
      [unobserved, 0, 0b11],
    )
  })

  test('refuses an unknown action with the path of the event', () => {
    for (const name of ['liked', '', 'constructor', '__proto__']) {
      const histories = [
        [event('1', 1)],
        [event('1', 1), event('1', 2, { actions: ['like', name] })],
      ]
      assert.throws(() => build({ histories }), {
        code: 'INVALID_REQUEST',
        path: '/histories/1/1/actions/1',
        message: `unknown action ${JSON.stringify(name)}: expected one of click, like, share, unobserved, moved`,
      })
    }
  })

  test('scores unknown ids by row 0, with a warning that counts them', () => {
    const got = build({ histories: [[event('99', 1), event('x', 2), event('3', 3)]] })
    assert.deepEqual(
      eventsOf(got).map(([, , row]) => row),
      [0, 0, 3],
    )
    assert.deepEqual(
      got.warnings.map(({ code, count }) => [code, count]),
      [['UNKNOWN_ITEM', 2]],
    )
    assert.deepEqual(got.unknownItems, { count: 2, items: ['99', 'x'] })
  })

  test('counts every unknown id and names the first 20 different ones', () => {
    const ids = Array.from({ length: 50 }, (_, i) => `new-${i % 25}`)
    const candidates = ids.map((item) => ({ item }))
    const { unknownItems } = buildCandidates(input({ candidates }), vocabulary, {})
    assert.deepEqual(unknownItems, { count: 50, items: ids.slice(0, 20) })
  })

  test('says why dense features are dropped, once per place and name with a count', () => {
    const { warnings } = build({
      user: { id: 'u', features: { country: 1, ctr: 0.25, mood: 'good' } },
      histories: [
        [event('1', 1, { features: { views: 10 } }), event('2', 2, { features: { views: 12 } })],
      ],
    })
    assert.deepEqual(
      warnings.map(({ code, count }) => [code, count]),
      [
        ['DENSE_FEATURE_DROPPED', 2],
        ['DENSE_FEATURE_DROPPED', 1],
        ['UNKNOWN_FEATURE', 1],
      ],
    )
    assert.match(
      warnings[0]?.message ?? '',
      /history: dense feature "views" was dropped: HSTU replaces counters and ratios by the history/,
    )
    assert.match(warnings[1]?.message ?? '', /user: dense feature "ctr"/)
    assert.match(warnings[2]?.message ?? '', /user: feature "mood" is not in the model's manifest/)
  })

  test('warns of series that the model does not have, and of events after the query', () => {
    const got = build({
      histories: [[event('1', 999), event('2', 1000), event('3', 1001), event('4', 5000)]],
      series: { town: [{ value: 1, time: 5 }], constructor: [{ value: 1, time: 5 }] },
    })
    assert.deepEqual(
      got.warnings.map(({ code, count }) => [code, count]),
      [
        ['UNKNOWN_SERIES', 1],
        ['UNKNOWN_SERIES', 1],
        ['EVENT_AFTER_QUERY', 2],
      ],
    )
    assert.equal(got.events, 4, 'they are kept')
    assert.equal(got.tokens.times.at(-1), 5000, 'with their own time')
  })

  test('takes names that every object inherits as values only where the client sent them', () => {
    const names = smallConfig({
      context: [
        { name: 'constructor', rows: 5 },
        { name: 'toString', rows: 5, encoding: { kind: 'hash' } },
      ],
      auxiliary: [{ name: 'valueOf', table: 'aux.v', rows: 6, action: 'moved' }],
    })
    const inherited = createVocabulary(names, (file) => assert.fail(file))
    const { tokens } = buildHistory(input({ user: { id: 'u', features: {} } }), inherited)
    assert.deepEqual([tokens.rows[0], tokens.rows[slots]], [1, 6], 'rows 0 of both tables')
    assert.equal(tokens.length, 2)
  })
})

describe('firstOfEachRun', () => {
  test('keeps the first of each run in time order, as a plain loop does, for random series', () => {
    const seed = 13
    const random = createRandom(seed)
    for (let round = 0; round < 500; round++) {
      const entries = Array.from({ length: Math.floor(random() * 12) }, () => ({
        value: Math.floor(random() * 3),
        time: Math.floor(random() * 8),
      }))
      const kept: SeriesEntry[] = []
      let last: unknown
      for (let time = 0; time < 8; time++) {
        for (const entry of entries) {
          if (entry.time !== time) continue
          if (entry.value !== last) kept.push(entry)
          last = entry.value
        }
      }
      assert.deepEqual(firstOfEachRun(entries), kept, `seed ${seed}, round ${round}`)
    }
  })
})

describe('buildCandidates', () => {
  test('gives one row per slot and candidate, in request order, repeats included', () => {
    const { rows, warnings } = buildCandidates(
      input({
        candidates: [
          { item: '3', features: { author: 2, tag: 1 } },
          { item: 'none', features: { tag: 2, ctr: 0.5 } },
          { item: '3', features: { author: 2, tag: 1 } },
        ],
      }),
      vocabulary,
      {},
    )
    const [id, author, tag] = [offset('item.id'), offset('item.author'), offset('item.tag')]
    assert.deepEqual(
      [...rows],
      [id + 3, author + 2, tag + 1, id, author, tag + 2, id + 3, author + 2, tag + 1],
    )
    assert.deepEqual(
      warnings.map(({ code, count }) => [code, count]),
      [
        ['DENSE_FEATURE_DROPPED', 1],
        ['UNKNOWN_ITEM', 1],
      ],
    )
  })
})
