import assert from 'node:assert/strict'
import { after, describe, test } from 'node:test'
import type { ConfigOf } from '../model/config.js'
import { parseConfig } from '../model/config.js'
import type { Engine } from '../model/engine/engine.js'
import type { WeightSource } from '../model/export/checkpoint.js'
import { researchVariant } from '../model/export/research/variant.js'
import { createRandom } from '../model/random.js'
import type { HistoryEvent, RetrieveInput } from '../model/request.js'
import { buildCandidates, buildHistory } from '../model/sequence.js'
import { TOLERANCE } from '../model/vectors.js'
import { countHandles, KINDS, openEngine } from '../test/engines.js'
import { exportModel, type ModelFixture, type ModelOptions, type Scope } from '../test/fixtures.js'
import { SMALL_RESEARCH } from '../test/small-checkpoints.js'
import { createRanker, type RankerOptions } from './rank.js'
import type { RetrieveResult } from './types.js'

const ITEMS = SMALL_RESEARCH.items
/** Out of order, and not all of them. */
const LISTED = ['7', 40, '3', '12', '1', '39', '22', '23', '24', '25', '5']

function researchConfig(changes: object = {}): ConfigOf<'research'> {
  const config = parseConfig({ ...SMALL_RESEARCH, ...changes })
  assert.ok(config.variant === 'research')
  return config
}

/** Random weights in which the items come in twins: 1 and 21, 2 and 22, … have one embedding. */
function twins(config: ConfigOf<'research'>): WeightSource {
  const source = researchVariant(config).random(7)
  const { dModel } = config
  return {
    names: source.names,
    dims: source.dims,
    read(name) {
      const data = source.read(name).slice()
      // The zero row, the items' row 0, then items 1 on.
      if (name === 'embedding') data.copyWithin((2 + 20) * dModel, 2 * dModel, (2 + 20) * dModel)
      return data
    },
  }
}

function exportResearch(scope: Scope, options: ModelOptions = {}): ModelFixture {
  const config = options.config ?? researchConfig()
  assert.ok(config.variant === 'research')
  return exportModel(scope, { config, source: twins(config), ...options })
}

/** Events an irregular time apart; one id in twenty is unknown. */
function request(events: number, seed: number, rest: Partial<RetrieveInput> = {}): RetrieveInput {
  const random = createRandom(seed)
  let time = 1_700_000_000
  const history = Array.from({ length: events }, (): HistoryEvent => {
    time += Math.floor(10 ** (random() * 7))
    return { item: String(1 + Math.floor(random() * (ITEMS + 2))), time }
  })
  return {
    ...{ user: { id: `user-${seed}` }, histories: [history], series: {}, time: time + 77 },
    ...{ exclude: [], excludeHistory: false },
    ...rest,
  }
}

/** Every item of the list by a slow float64 search, best first, ties in the order of the list. */
function bruteForce({ vocabulary, reference }: ModelFixture, input: RetrieveInput) {
  const { candidates } = vocabulary
  assert.ok(candidates)
  const history = buildHistory(input, vocabulary)
  const ids = Array.from({ length: candidates.length }, (_, place) => candidates.itemAt(place))
  const all = { ...input, candidates: ids.map((item) => ({ item })) }
  const { rows } = buildCandidates(all, vocabulary, history)
  const { logits } = reference(history.tokens, rows, input.time)
  const seen = input.excludeHistory ? input.histories.flat().map(({ item }) => item) : []
  const excluded = new Set([...seen, ...input.exclude])
  return ids
    .map((item, index) => ({ item, index, score: logits[index] ?? 0 }))
    .filter(({ item }) => !excluded.has(item))
    .sort((a, b) => b.score - a.score || a.index - b.index)
}

/** The same items in the same order as the oracle, but where its scores are closer than the tolerance. */
function assertSame(
  { items }: RetrieveResult,
  expected: ReturnType<typeof bruteForce>,
  k: number,
  tolerance: number,
  what: string,
): void {
  assert.equal(items.length, Math.min(k, expected.length), what)
  assert.equal(new Set(items.map(({ index }) => index)).size, items.length, what)
  const scoreOf = new Map(expected.map(({ item, score }) => [item, score]))
  items.forEach(({ item, index, score }, i) => {
    const own = scoreOf.get(item)
    const there = expected[i]
    assert.ok(own !== undefined && there !== undefined, `${what}: ${item} is excluded`)
    assert.ok(Math.abs(score - own) <= tolerance, `${what}: ${item} ${score} ${own}`)
    assert.ok(Math.abs(score - there.score) <= tolerance, `${what}: place ${i}`)
    const next = items[i + 1]
    if (next !== undefined) {
      assert.ok(score > next.score || (score === next.score && index < next.index), what)
    }
  })
}

function ranker(engine: Engine, { bundle }: ModelFixture, changes: Partial<RankerOptions> = {}) {
  return createRanker({ engine, bundle, microBatchSize: 4, maxKvBytes: 1e9, ...changes })
}

for (const precision of ['fp32', 'fp16'] as const) {
  for (const kind of KINDS) {
    describe(`retrieve in ${precision} on ${kind}`, () => {
      const whole = exportResearch({ after }, { precision })
      const some = exportResearch(
        { after },
        {
          precision,
          config: researchConfig({ candidates: 'list.json' }),
          files: { 'list.json': LISTED },
        },
      )
      const tolerance = TOLERANCE[precision]
      const opened = [whole, some].map((model) => ({ model, engine: openEngine(kind, model) }))
      after(() => Promise.all(opened.map(async ({ engine }) => (await engine).close())))

      test('finds what a slow search of all items finds, at every size of a chunk', async () => {
        for (const { model, engine } of opened) {
          const { length } = model.vocabulary.candidates ?? []
          for (const events of [0, 1, 2, 20, 45]) {
            const input = request(events, events, { excludeHistory: events > 2 })
            const expected = bruteForce(model, input)
            let first: RetrieveResult | undefined
            for (let chunkItems = 1; chunkItems <= length + 1; chunkItems++) {
              const { retrieve } = ranker(await engine, model, { chunkItems })
              const topK = 1 + ((chunkItems * 7) % (length + 3))
              const found = await retrieve(input, { topK: length })
              const what = `${length} items, ${events} events, chunks of ${chunkItems}`
              assertSame(found, expected, length, tolerance, what)
              if (chunkItems < 3) continue
              first ??= found
              // Not nearly: a score does not depend on who else is in the chunk, unless it is alone.
              assert.deepEqual(found.items, first.items, what)
              const { items } = await retrieve(input, { topK })
              assert.deepEqual(items, first.items.slice(0, topK), `${what}, the best ${topK}`)
            }
          }
        }
      })

      test('gives the same for a hit, an append, a miss and nothing kept', async () => {
        for (const { model, engine } of opened) {
          const kept = ranker(await engine, model)
          const input = request(20, 5)
          const [history = []] = input.histories
          const states: string[] = []
          const results: RetrieveResult[] = []
          const ask = async ({ retrieve }: typeof kept, asked: RetrieveInput) => {
            const result = await retrieve(asked, { topK: 10 })
            states.push(result.kv.state)
            return result
          }
          results.push(await ask(ranker(await engine, model, { maxKvBytes: 0 }), input))
          results.push(await ask(kept, input))
          results.push(await ask(kept, input))
          const other = ranker(await engine, model)
          await ask(other, { ...input, histories: [history.slice(0, 12)] })
          results.push(await ask(other, input))
          // Later, nothing has happened since.
          const later = { ...input, time: input.time + 86_400 * 30 }
          const again = await ask(kept, later)
          assert.deepEqual(states, ['miss', 'miss', 'hit', 'miss', 'stale', 'hit'])
          for (const result of results) {
            assertSame(result, bruteForce(model, input), 10, tolerance, result.kv.state)
          }
          assertSame(again, bruteForce(model, later), 10, tolerance, 'later')
        }
      })
    })
  }
}

describe('retrieve from a table of int8 rows, whose ids are a list with buckets behind it', () => {
  const ids = Array.from({ length: 36 }, (_, i) => `item-${i}`)
  const itemEncoding = { kind: 'vocabulary', file: 'ids.txt', buckets: 4 }
  for (const kind of KINDS) {
    test(`engine ${kind} finds what a slow search of all listed items finds`, async (t) => {
      const config = researchConfig({ itemEncoding })
      const list = { 'ids.txt': `${ids.join('\n')}\n` }
      const model = exportModel(t, { config, table: 'int8', texts: list })
      const engine = await openEngine(kind, model)
      t.after(() => engine.close())
      const history = [3, 30, 7, 99].map((i, e) => ({ item: `item-${i}`, time: 100 + 1000 * e }))
      const input = { ...request(0, 1), histories: [history], time: 5000, excludeHistory: true }
      const expected = bruteForce(model, input)
      assert.equal(expected.length, ids.length - 3, 'the fourth has a bucket, and is no candidate')
      for (const chunkItems of [3, 10, 36]) {
        const found = await ranker(engine, model, { chunkItems }).retrieve(input, { topK: 40 })
        assertSame(found, expected, 40, TOLERANCE.fp32, `chunks of ${chunkItems}`)
      }
      assert.equal(model.vocabulary.candidates?.placeOf('item-99'), undefined)
    })
  }
})

describe('retrieve', () => {
  const model = exportResearch({ after })
  const engine = openEngine('capi', model)
  after(async () => (await engine).close())
  const retrieve = async (input: RetrieveInput, topK = 10, changes: Partial<RankerOptions> = {}) =>
    ranker(await engine, model, changes).retrieve(input, { topK })

  test('puts equal items in the order of the list, also across chunks', async () => {
    for (const chunkItems of [3, 20, 21, 64]) {
      const { items } = await retrieve(request(7, 3), ITEMS, { chunkItems })
      for (let i = 0; i < items.length; i += 2) {
        const [first, second] = [items[i], items[i + 1]]
        assert.equal(first?.score, second?.score)
        assert.equal((second?.index ?? 0) - (first?.index ?? 0), 20, `${first?.item} and its twin`)
      }
    }
  })

  test('leaves out the history and what is named, and still gives k where there are k', async () => {
    const history = Array.from({ length: 10 }, (_, i) => ({ item: String(i + 1), time: 100 + i }))
    const input = { ...request(0, 1), histories: [history], time: 200 }
    const all = await retrieve(input, ITEMS)
    assert.equal(all.items.length, ITEMS)
    const { items, excluded, unknownItems, warnings } = await retrieve(
      { ...input, excludeHistory: true, exclude: ['40', '40', '3', 'nobody', '0', '41'] },
      29,
    )
    const out = new Set([...history.map(({ item }) => item), '40'])
    assert.deepEqual(
      items,
      all.items.filter(({ item }) => !out.has(item)),
    )
    assert.equal(excluded, 11)
    assert.deepEqual(unknownItems.exclude, { count: 3, items: ['nobody', '0', '41'] })
    assert.deepEqual(warnings, [
      {
        code: 'UNKNOWN_ITEM',
        message: 'excluded items are not in the candidate list',
        count: 3,
      },
    ])
  })

  test('leaves out what lies before the window too', async () => {
    const history = Array.from({ length: 40 }, (_, i) => ({ item: String(i + 1), time: 100 + i }))
    const input = { ...request(0, 1), histories: [history.slice(0, 39)], time: 200 }
    const { items, truncatedEvents } = await retrieve({ ...input, excludeHistory: true })
    assert.ok(truncatedEvents > 0)
    assert.deepEqual(
      items.map(({ item }) => item),
      ['40'],
    )
  })

  test('answers nothing when everything is left out', async () => {
    const exclude = Array.from({ length: ITEMS }, (_, i) => String(i + 1))
    for (const chunkItems of [7, 100]) {
      const { items, listed, excluded } = await retrieve({ ...request(4, 2), exclude }, 10, {
        chunkItems,
      })
      assert.deepEqual([items.length, listed, excluded], [0, ITEMS, ITEMS])
    }
  })

  test('leaves out the stored history', async () => {
    const stored = ranker(await engine, model)
    await stored.appendEvents('user-1', [
      { item: '5', time: 100 },
      { item: '6', time: 150 },
    ])
    const input = { ...request(0, 1), histories: [], time: 200, excludeHistory: true }
    const { items, historyTokens } = await stored.retrieve(input, { topK: ITEMS, useStored: true })
    assert.equal(historyTokens, 1, 'the last event travels with the request')
    assert.equal(items.length, ITEMS - 2)
    assert.ok(items.every(({ item }) => item !== '5' && item !== '6'))
  })

  test('refuses a bundle without a retrieval head', async () => {
    const plain = exportModel({ after })
    const other = await openEngine('node', plain)
    after(() => other.close())
    await assert.rejects(ranker(other, plain).retrieve(request(1, 1), { topK: 1 }), {
      code: 'INVALID_REQUEST',
      path: '/model',
      message: /model small has no retrieval head/,
    })
  })

  test('stops between two parts of the list when the deadline passed or the client left', async () => {
    const counted = countHandles(await engine)
    const controller = new AbortController()
    let clock = 0
    let runs = 0
    const slow: Engine = {
      ...counted,
      retrieve: (...args) => {
        clock += 5
        runs++
        if (clock === 15) controller.abort()
        return counted.retrieve(...args)
      },
    }
    const timed = ranker(slow, model, { chunkItems: 8, now: () => clock, maxKvBytes: 0 })
    const ask = (options: object) => timed.retrieve(request(4, 1), { topK: 3, ...options })
    await assert.rejects(ask({ deadlineMs: 9 }), {
      code: 'DEADLINE_EXCEEDED',
      message: /deadlineMs 9 passed after 10\.0 ms/,
    })
    assert.equal(runs, 2)
    await assert.rejects(ask({ signal: controller.signal }), { code: 'CANCELLED' })
    assert.equal(runs, 3)
    await assert.rejects(ask({ deadlineMs: 5, waitedMs: 6 }), { code: 'DEADLINE_EXCEEDED' })
    assert.equal(runs, 3)
    const { items } = await ask({ deadlineMs: 25 })
    assert.deepEqual([items.length, runs], [3, 8])
    await timed.kvOf('user-1')
    assert.equal(counted.live(), 0)
  })

  test('refuses a user that is not finite with MODEL_CONTRACT, and releases the K/V', async () => {
    const counted = countHandles(await engine)
    const overflowing: Engine = {
      ...counted,
      encode: async () => new Float32Array(12).fill(Number.NaN),
    }
    const broken = ranker(overflowing, model, { maxKvBytes: 0 })
    await assert.rejects(broken.retrieve(request(4, 1), { topK: 3 }), { code: 'MODEL_CONTRACT' })
    assert.equal(counted.live(), 0)
  })

  test('says what of a run took how long, and in how many parts', async () => {
    const { timings, chunkMs, chunkItems, kv } = await retrieve(request(5, 1), 3, { chunkItems: 9 })
    assert.deepEqual([chunkMs.length, chunkItems], [5, 9])
    assert.equal(kv.decision, 'recompute')
    const { sequenceMs, historyMs, encodeMs, searchMs, totalMs } = timings
    const sum = sequenceMs + historyMs + encodeMs + searchMs
    // Each is rounded to a microsecond.
    assert.ok(sum <= totalMs + 0.003, `${sum} of ${totalMs}`)
  })
})
