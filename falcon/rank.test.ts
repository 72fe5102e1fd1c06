import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import type { Engine } from '../model/engine/engine.js'
import { createNodeEngine } from '../model/engine/node/pool.js'
import { predict } from '../model/heads.js'
import { createRandom } from '../model/random.js'
import type { RankInput } from '../model/request.js'
import type { OnStep } from '../model/step.js'
import { exportModel, randomRequest, tokensOf } from '../test/fixtures.js'
import { slowEngine } from '../test/slow-engine.js'
import { createRanker, type RankerOptions } from './rank.js'

const model = exportModel({ after })
const tasks = model.config.tasks

let engine: Engine
before(async () => {
  engine = await createNodeEngine({ bundle: model.bundle })
})
after(() => engine.close())

function ranker(changes: Partial<RankerOptions> = {}) {
  return createRanker({
    engine,
    bundle: model.bundle,
    microBatchSize: 2,
    maxKvBytes: 1e9,
    ...changes,
  })
}

/** A ranker whose clock moves 5 ms with every micro-batch and 1 ms with every prefill, and not else. */
function slowRanker() {
  const slow = slowEngine(engine)
  return { ...ranker(slow), runs: slow.runs }
}

const request = (events: number, candidates: number, seed = 1, user = 'u') =>
  randomRequest(model.config, createRandom(seed), { user, events, candidates })

/** First `events` events of a request. */
function shortened(input: RankInput, events: number): RankInput {
  return { ...input, histories: input.histories.map((history) => history.slice(0, events)) }
}

test('says of its model what a caller needs to write a request', () => {
  const { name, actions, exampleItems, weights } = ranker().model
  assert.deepEqual([name, actions], ['small', model.config.actions])
  assert.deepEqual(exampleItems, model.vocabulary.knownItems())
  assert.equal(exampleItems.length, 30)
  assert.equal(weights, undefined, 'the bundle has none: 1 each')
})

describe('rank', () => {
  test('refuses logits that are not finite with MODEL_CONTRACT, and releases the K/V', async () => {
    const released: unknown[] = []
    const overflowing: Engine = {
      ...engine,
      score: async (_, rows) => new Float32Array(rows.length).fill(Number.POSITIVE_INFINITY),
      release(handle) {
        released.push(handle)
        engine.release(handle)
      },
    }
    const { rank } = ranker({ engine: overflowing, maxKvBytes: 0 })
    await assert.rejects(rank(request(4, 2), {}), {
      code: 'MODEL_CONTRACT',
      message: /must be finite, got Infinity: the fp32 model/,
    })
    assert.equal(released.length, 1)
  })

  test('orders by the value formula over the oracle’s predictions', async () => {
    const input = request(9, 11)
    const weights = { click: 1, seconds: -0.5 }
    const { items, ...result } = await ranker().rank(input, { weights })
    const { history, candidates, queryTime } = tokensOf(input, model.vocabulary)
    const { logits } = model.reference(history, candidates, queryTime)
    const expected = input.candidates.map(({ item }, index) => {
      const own = logits.subarray(index * 3, index * 3 + 3)
      const predictions = tasks.map((task, t) => predict(task, own[t] ?? 0))
      const [click = 0, , seconds = 0] = predictions
      return { item, index, score: click - 0.5 * seconds, predictions }
    })
    expected.sort((a, b) => b.score - a.score || a.index - b.index)
    assert.deepEqual(
      items.map(({ item, index }) => [item, index]),
      expected.map(({ item, index }) => [item, index]),
    )
    items.forEach(({ score, tasks: got }, i) => {
      assert.ok(Math.abs(score - (expected[i]?.score ?? 0)) <= 1e-4)
      assert.deepEqual(Object.keys(got), ['click', 'like', 'seconds'])
      Object.values(got).forEach((prediction, t) => {
        assert.ok(Math.abs(prediction - (expected[i]?.predictions[t] ?? 0)) <= 1e-4)
      })
    })
    assert.equal(result.candidates, 11)
    assert.equal(result.scored, 11)
    assert.equal(result.microBatches, 6)
    assert.equal(result.microBatchSize, 2)
    assert.equal(result.historyTokens, history.length)
  })

  test('breaks ties by request order', async () => {
    const base = request(3, 1)
    const [candidate] = base.candidates
    assert.ok(candidate)
    // b = 3: an even split, so that equal rows run in products of equal height.
    const input = { ...base, candidates: new Array(9).fill(candidate) }
    const { items } = await ranker({ microBatchSize: 3 }).rank(input, {})
    assert.deepEqual(
      items.map(({ index }) => index),
      [...Array(9).keys()],
    )
    const zero = await ranker().rank(request(3, 7), { weights: { click: 0 } })
    assert.deepEqual(
      zero.items.map(({ index, score }) => [index, score]),
      Array.from({ length: 7 }, (_, i) => [i, 0]),
    )
  })

  test('topK is the head of the whole order', async () => {
    const input = request(5, 7)
    const { items } = await ranker().rank(input, {})
    for (let topK = 0; topK <= 9; topK++) {
      const result = await ranker().rank(input, { topK })
      assert.deepEqual(
        result.items.map(({ index }) => index),
        items.slice(0, topK).map(({ index }) => index),
      )
      assert.equal(result.candidates, 7)
    }
  })

  test('ranks nothing for no candidates, with and without a history', async () => {
    for (const events of [0, 4]) {
      const { items, scored } = await ranker().rank(request(events, 0), {})
      assert.deepEqual([items, scored], [[], 0])
    }
  })

  test('uses the bundle’s weights where the request gives none', async (t) => {
    const weighted = exportModel(t, { config: { ...model.config, weights: { like: 3 } } })
    const own = ranker({ bundle: weighted.bundle })
    const input = request(5, 4)
    for (const { score, tasks: got } of (await own.rank(input, {})).items) {
      assert.ok(Math.abs(score - 3 * (got.like ?? 0)) < 1e-12)
    }
    for (const { score, tasks: got } of (await own.rank(input, { weights: { click: 1 } })).items) {
      assert.equal(score, got.click)
    }
  })

  test('refuses unknown weights and actions before any work', async () => {
    const { rank, runs } = slowRanker()
    await assert.rejects(rank(request(3, 3), { weights: { x: 1 } }), {
      code: 'INVALID_REQUEST',
      path: '/weights/x',
    })
    const input = request(3, 3)
    const histories = [[{ item: '1', time: 5, actions: ['nothing'] }]]
    await assert.rejects(rank({ ...input, histories }, {}), {
      code: 'INVALID_REQUEST',
      path: '/histories/0/0/actions/0',
    })
    assert.equal(runs(), 0)
  })

  test('passes the warnings of history and candidates on', async () => {
    const input = request(2, 2)
    const { warnings } = await ranker().rank(
      {
        ...input,
        user: { id: 'u', features: { ctr: 0.5 } },
        candidates: [{ item: 'nowhere' }],
        series: {},
      },
      {},
    )
    assert.deepEqual(
      warnings.map(({ code }) => code).filter((code) => code !== 'UNKNOWN_ITEM'),
      ['DENSE_FEATURE_DROPPED'],
    )
    assert.ok(warnings.some(({ message }) => /^candidates not in the vocabulary/.test(message)))
  })

  test('reports how much of the history it truncated', async () => {
    const { truncatedEvents, historyTokens, warnings } = await ranker().rank(request(50, 2), {})
    assert.deepEqual([truncatedEvents, historyTokens], [18, 66])
    assert.ok(warnings.some(({ code }) => code === 'HISTORY_TRUNCATED'))
  })
})

describe('rank and its cache', () => {
  test('goes from miss to hit to stale, and to none without events', async () => {
    const { rank, stats } = ranker()
    const full = request(9, 3)
    const kvOf = async (input: RankInput) => {
      const { measuredMs, ...kv } = (await rank(input, {})).kv
      assert.ok(measuredMs !== undefined && measuredMs > 0)
      return kv
    }
    const decisions = { hit: 'hit', stale: 'append', miss: 'recompute', none: 'onePass' }
    const kv = (state: keyof typeof decisions, reusedTokens: number, prefilledTokens: number) => ({
      state,
      ...(reusedTokens > 0 && { tier: 1 }),
      reusedTokens,
      prefilledTokens,
      decision: decisions[state],
    })
    assert.deepEqual(await kvOf(shortened(full, 5)), kv('miss', 0, 12))
    assert.deepEqual(await kvOf(shortened(full, 5)), kv('hit', 12, 0))
    assert.deepEqual(await kvOf({ ...shortened(full, 5), time: full.time + 9 }), kv('hit', 12, 0))
    assert.deepEqual(await kvOf(full), kv('stale', 12, 8))
    assert.deepEqual(await kvOf(full), kv('hit', 20, 0))
    const other = { ...full, user: { ...full.user, id: 'other' } }
    assert.deepEqual(await kvOf(other), kv('miss', 0, 20))
    assert.equal(stats().cache.entries, 2)
    assert.deepEqual(await kvOf(request(0, 2)), kv('none', 0, 2))
    assert.equal((await rank(request(0, 2), {})).microBatches, 1)
    assert.equal(stats().cache.entries, 2)
    assert.deepEqual((await rank(request(0, 3), {})).kv.state, 'miss', 'beyond one micro-batch')
  })

  test('a changed user attribute is another history', async () => {
    const { rank } = ranker()
    const input = request(4, 2)
    const features = { ...input.user.features, country: 1 }
    const changed = { ...features, country: 2 }
    await rank({ ...input, user: { id: 'u', features } }, {})
    const { kv } = await rank({ ...input, user: { id: 'u', features: changed } }, {})
    assert.equal(kv.state, 'miss')
  })

  test('releases all K/V on close', async () => {
    let live = 0
    const counted: Engine = {
      ...engine,
      prefill: async (...args) => {
        const handle = await engine.prefill(...args)
        live++
        return handle
      },
      release: (handle) => {
        live--
        engine.release(handle)
      },
      close: async () => {},
    }
    const own = ranker({ engine: counted, maxKvBytes: 20_000 })
    await Promise.all(
      Array.from({ length: 20 }, (_, i) => own.rank(request(i, 3, i, `u${i % 6}`), {})),
    )
    await own.close()
    assert.equal(live, 0)
  })
})

describe('rank and its clock', () => {
  test('timings are the stages and sum to the total', async () => {
    const { rank } = slowRanker()
    const { timings } = await rank(request(5, 10), {})
    assert.deepEqual(timings, {
      sequenceMs: 0,
      historyMs: 1,
      scoreMs: 25,
      headsMs: 0,
      totalMs: 26,
    })
    const real = (await ranker().rank(request(5, 10), {})).timings
    const sum = real.sequenceMs + real.historyMs + real.scoreMs + real.headsMs
    // Each of the five is rounded to a microsecond.
    assert.ok(Math.abs(sum - real.totalMs) < 0.003)
    assert.ok(Object.values(real).every((ms) => ms >= 0))
  })

  test('a partial answer whose deadline is over before any work costs none', async () => {
    const idle: Engine = {
      ...engine,
      prefill: () => Promise.reject(new Error('no prefill was due')),
      rank: () => Promise.reject(new Error('no run was due')),
    }
    for (const events of [0, 4]) {
      let clock = 0
      const { rank } = ranker({ engine: idle, now: () => (clock += 5) })
      const { items, scored, kv } = await rank(request(events, 2), { deadlineMs: 1, partial: true })
      assert.deepEqual({ items, scored, state: kv.state }, { items: [], scored: 0, state: 'none' })
    }
  })

  test('a request without events leaves the user’s K/V where it is, however many candidates', async () => {
    const { rank } = ranker()
    const full = request(5, 3)
    assert.equal((await rank(full, {})).kv.state, 'miss')
    assert.equal((await rank(request(0, 1), {})).kv.state, 'none')
    assert.equal((await rank(request(0, 9), {})).kv.state, 'miss')
    assert.equal((await rank(full, {})).kv.state, 'hit')
  })

  test('stops between micro-batches at the deadline: an error, or what is scored, for every deadline', async (t) => {
    // The deadline's own timer runs on the machine's clock.
    t.mock.timers.enable({ apis: ['setTimeout'] })
    const input = request(5, 10)
    const whole = (await ranker().rank(input, {})).items
    const byIndex = new Map(whole.map((item) => [item.index, item]))
    for (let deadlineMs = 0; deadlineMs <= 30; deadlineMs++) {
      // Checked at 1, 6, 11, 16 and 21 ms, before each of the five runs.
      const ran = [1, 6, 11, 16, 21].filter((ms) => ms <= deadlineMs).length
      const { rank } = slowRanker()
      const result = await rank(input, { deadlineMs, partial: true })
      const { items, scored, microBatches, microBatchMs } = result
      assert.deepEqual([scored, microBatches, items.length], [2 * ran, ran, 2 * ran])
      assert.deepEqual(microBatchMs, Array(ran).fill(5))
      assert.deepEqual(
        items.map(({ index }) => index).sort((a, b) => a - b),
        [...Array(2 * ran).keys()],
      )
      for (const item of items) assert.deepEqual(item, byIndex.get(item.index))
      const strict = slowRanker()
      if (ran === 5) {
        await strict.rank(input, { deadlineMs })
      } else {
        await assert.rejects(strict.rank(input, { deadlineMs }), {
          code: 'DEADLINE_EXCEEDED',
          message: new RegExp(`^deadlineMs ${deadlineMs} passed after .+ ${2 * ran} candidates`),
        })
      }
      assert.equal(strict.runs(), ran)
    }
  })

  test('tells of each part when it has ended, and of the one that failed', async () => {
    const told: unknown[] = []
    const onStep: OnStep = (name, startMs, endMs, attributes) => {
      assert.ok(startMs <= endMs)
      told.push([name, attributes])
    }
    const input = request(3, 3)
    let fails = 0
    const { rank, prefetch } = ranker({
      engine: {
        ...engine,
        score: async (...args) => {
          if (fails++ === 0) throw new Error('as asked')
          return engine.score(...args)
        },
      },
    })
    await assert.rejects(rank(input, { onStep }), { message: 'as asked' })
    const { historyTokens: tokens } = await rank(input, { onStep })
    assert.deepEqual(told.splice(0), [
      ['sequence', { tokens }],
      ['kv.lookup', { tokens, found: 0 }],
      ['kv.prefill', { tokens, past_tokens: 0 }],
      ['score', { error: true }],
      ['sequence', { tokens }],
      ['kv.lookup', { tokens, found: tokens }],
      ['score', { candidates: 1 }],
      ['score', { candidates: 2 }],
      ['heads', { items: 3 }],
    ])
    const nobody = { ...input, user: { id: 'nobody' } }
    const made = [prefetch(nobody, { onStep }), prefetch(nobody, { onStep, useStored: true })]
    for (const { kv } of await Promise.all(made)) await kv
    assert.deepEqual(told.toSorted(), [
      ['history.read', { events: 0 }],
      ['kv.lookup', { tokens, found: 0 }],
      ['kv.lookup', { tokens, found: tokens }],
      ['kv.prefill', { tokens, past_tokens: 0 }],
      ['kv.wait', { tokens }],
    ])
  })

  test('keeps the K/V that a late request built for the next one', async (t) => {
    t.mock.timers.enable({ apis: ['setTimeout'] })
    const { rank } = slowRanker()
    await assert.rejects(rank(request(5, 10), { deadlineMs: 0 }), { code: 'DEADLINE_EXCEEDED' })
    assert.equal((await rank(request(5, 10), {})).kv.state, 'hit')
  })
})
