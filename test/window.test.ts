// A history at the model's limit: K/V is built anew once per slack events, and scores are those of the
// float64 oracle over the very window that the request alone determines.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { createRanker } from '../falcon/rank.js'
import type { RankResult } from '../falcon/types.js'
import { largestDifference } from '../falcon/verify.js'
import type { Engine } from '../model/engine/engine.js'
import { createRandom } from '../model/random.js'
import type { RankInput } from '../model/request.js'
import { TOLERANCE } from '../model/vectors.js'
import { roomOf } from '../model/window.js'
import { openEngine } from './engines.js'
import { exportModel, randomRequest, smallConfig, tokensOf } from './fixtures.js'

const SEED = 11

for (const { name, config } of [
  { name: 'with context tokens and a series', config: smallConfig() },
  {
    name: 'without context tokens, two series, an odd token left over',
    config: smallConfig({
      maxTokens: 49,
      context: [],
      auxiliary: [
        { name: 'city', table: 'aux.city', rows: 6, action: 'moved' },
        { name: 'followed', table: 'item.author', action: 'share' },
      ],
    }),
  },
]) {
  describe(`the window of a model ${name}`, () => {
    const model = exportModel({ after }, { config })
    const room = roomOf(config)
    let engine: Engine
    before(async () => {
      engine = await openEngine('capi', model)
    })
    after(() => engine.close())

    const open = (slackEvents: number) =>
      createRanker({
        engine,
        bundle: model.bundle,
        microBatchSize: 4,
        maxKvBytes: 1e9,
        slackEvents,
      })

    const assertOracle = ({ items }: RankResult, input: RankInput, what: string, slack = 0) => {
      const { history, candidates, queryTime } = tokensOf(input, model.vocabulary, slack)
      const got = items.toSorted((a, b) => a.index - b.index).flatMap(({ logits }) => logits)
      const expected = model.reference(history, candidates, queryTime).logits
      const difference = largestDifference(got, expected)
      assert.ok(difference <= TOLERANCE.fp32, `seed ${SEED}, ${what}: ${difference}`)
    }

    const full = (events: number) =>
      randomRequest(config, createRandom(SEED), { events, candidates: 3 })
    /** The request as it was after the main event before `end`, of events from `start` on. */
    const cut = (input: RankInput, start: number, end: number): RankInput => {
      const events = input.histories[0]?.slice(start, end) ?? []
      return { ...input, histories: [events], time: (events.at(-1)?.time ?? input.time) + 60 }
    }

    for (const slack of [1, 2, 5, 8, room - 1]) {
      test(`is built anew once per ${slack} of ${3 * slack} events that come one at a time`, async () => {
        const input = full(room + 3 * slack)
        const { rank } = open(slack)
        assert.equal((await rank(cut(input, 0, room), {})).kv.state, 'miss', 'the first time')
        const states: string[] = []
        for (let added = 1; added <= 3 * slack; added++) {
          const now = cut(input, 0, room + added)
          const result = await rank(now, {})
          const { kv, truncatedEvents } = result
          states.push(kv.state)
          const start = slack * Math.ceil(added / slack)
          assert.equal(truncatedEvents, start)
          const { length } = tokensOf(now, model.vocabulary, slack).history
          assert.equal(kv.prefilledTokens, kv.state === 'stale' ? 2 : length)
          // A history that is cut already: the oracle needs no slack.
          assertOracle(result, cut(input, start, room + added), `slack ${slack}, ${added} added`)
          assert.equal((await rank(now, {})).kv.state, 'hit')
        }
        const expected = Array.from({ length: 3 * slack }, (_, i) =>
          i % slack === 0 ? 'miss' : 'stale',
        )
        assert.deepEqual(states, expected)
      })
    }

    test('counts the entries of series like events, wherever they fall in time', async () => {
      for (const slack of [3, 7]) {
        const input = full(2 * room)
        const [events = []] = input.histories
        const { rank } = open(slack)
        // The series changes with every event of the last three quarters.
        const changes = events.slice(room >> 1).map(({ time }, i) => ({ value: i % 3, time }))
        const at = (seconds: number): RankInput => ({
          ...input,
          histories: [events.filter(({ time }) => time <= seconds)],
          series: { city: changes.filter(({ time }) => time <= seconds) },
          time: seconds + 5,
        })
        const times = [...new Set(events.map(({ time }) => time))]
        const starts: (number | undefined)[] = []
        for (const time of times) {
          const now = at(time)
          const total = (now.histories[0]?.length ?? 0) + (now.series.city?.length ?? 0)
          const dropped = Math.max(0, slack * Math.ceil((total - room) / slack))
          const result = await rank(now, {})
          const { state } = result.kv
          assert.equal(result.truncatedEvents, dropped)
          assert.equal(result.historyTokens, config.context.length + 2 * (total - dropped))
          assert.equal(state, starts.at(-1) === dropped ? 'stale' : 'miss', `${total} entries`)
          assertOracle(result, now, `${total} entries`, slack)
          starts.push(dropped)
        }
        assert.ok(new Set(starts).size > 2, 'the window moved')
      }
    })

    test('is the whole history’s for a client that posts the newest events and says how many are older', async () => {
      const slack = 5
      const posted = room + 3
      const input = full(posted + 4 * slack)
      const { rank } = open(slack)
      const [told, silent] = [open(slack), open(slack)]
      const states = { told: 0, silent: 0 }
      for (let offset = 0; offset <= 4 * slack; offset++) {
        const whole = cut(input, 0, posted + offset)
        const last = cut(input, offset, posted + offset)
        const expected = await rank(whole, {})
        const got = await told.rank({ ...last, historyOffset: offset }, {})
        assert.deepEqual(got.items, expected.items, `offset ${offset}`)
        assert.equal(got.kv.state, expected.kv.state)
        assert.equal(got.kv.prefilledTokens, expected.kv.prefilledTokens)
        assert.equal(got.truncatedEvents + offset, expected.truncatedEvents)
        if (got.kv.state === 'miss') states.told++
        if ((await silent.rank(last, {})).kv.state === 'miss') states.silent++
      }
      assert.deepEqual(states, { told: 5, silent: 4 * slack + 1 })
    })
  })
}

test('slack beyond the overflow drops a whole step, down to few events', async () => {
  const model = exportModel({ after })
  const engine = await openEngine('capi', model)
  after(() => engine.close())
  const options = { engine, bundle: model.bundle, microBatchSize: 4, maxKvBytes: 0 }
  const input = randomRequest(model.config, createRandom(SEED), { events: 33, candidates: 2 })
  const { truncatedEvents, historyTokens, warnings } = await createRanker({
    ...options,
    slackEvents: 31,
  }).rank(input, {})
  assert.deepEqual([truncatedEvents, historyTokens], [31, 2 + 2 * 2])
  assert.deepEqual(
    warnings.filter(({ code }) => code === 'HISTORY_TRUNCATED'),
    [
      {
        code: 'HISTORY_TRUNCATED',
        message: 'history holds at most 32 events and moves 31 at a time; the oldest were dropped',
        count: 31,
      },
    ],
  )
  assert.throws(() => createRanker({ ...options, slackEvents: 32 }), {
    code: 'CONFIG_INVALID',
    message: /^window slack must be an integer from 0 to 31, /,
  })
})
