import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { decode } from '@msgpack/msgpack'
import { parseConfig } from '../model/config.js'
import { createRandom } from '../model/random.js'
import { exportModel, type Json, randomRequest, tempFolder } from '../test/fixtures.js'
import { putBundle, type ServedModels, serveModels } from '../test/models.js'
import { client, LIMITS, rankerOf } from '../test/plain-ranker.js'
import { SMALL_RESEARCH } from '../test/small-checkpoints.js'

const TIME = 1_700_000_000
const HISTORY = [
  { item: '3', time: TIME },
  { item: '17', time: TIME + 500 },
  { item: '9', time: TIME + 90_000 },
]
const BODY = { user: { id: 'u1' }, history: HISTORY, time: TIME + 100_000, topK: 7 }

const itemsOf = ({ body }: { readonly body: Json }): string[] =>
  body.items.map(({ item }: { item: string }) => item)

describe('POST /v1/retrieve', () => {
  const paper = exportModel({ after })
  const research = exportModel({ after }, { config: parseConfig(SMALL_RESEARCH) })
  const folder = `${tempFolder({ after })}/models`
  const cleanUps: (() => void | Promise<void>)[] = []
  let served: ServedModels
  before(async () => {
    served = await serveModels({ after: (clean) => cleanUps.push(clean) }, {}, folder)
    for (const [name, model] of Object.entries({ paper, research })) {
      putBundle(model, `${folder}/${name}`)
    }
    await served.watched.open()
  })
  after(async () => {
    for (const clean of cleanUps) await clean()
  })
  const retrieve = (body: object) =>
    served.send('POST', '/v1/retrieve', { ...BODY, model: 'small-research', ...body })

  test('answers the best items of the list, without those of the history', async () => {
    const { status, body } = await retrieve({})
    assert.equal(status, 200)
    const { model, items, kv, timings, warnings, explain, rank } = body
    assert.equal(model, `small-research@${research.bundle.manifest.version}`)
    assert.equal(items.length, 7)
    assert.deepEqual(Object.keys(items[0]), ['item', 'score'])
    assert.deepEqual(Object.keys(kv), ['state', 'reusedTokens', 'prefilledTokens'])
    assert.deepEqual(Object.keys(timings), [
      ...['queueMs', 'sequenceMs', 'historyMs', 'encodeMs', 'searchMs', 'totalMs'],
    ])
    assert.deepEqual([warnings, explain, rank], [[], undefined, undefined])
    const all = await retrieve({ topK: 1000, excludeHistory: false })
    const left = itemsOf(all).filter((item) => !HISTORY.some((event) => event.item === item))
    assert.equal(itemsOf(all).length, 40)
    assert.deepEqual(itemsOf({ body }), left.slice(0, 7))
    const [first, second, third] = left
    const some = await retrieve({ exclude: [first, third], topK: 1 })
    assert.deepEqual(itemsOf(some), [second])
  })

  test('scores as POST /v1/rank of the same model does', async () => {
    const { body } = await retrieve({})
    const ranked = await served.send('POST', '/v1/rank', {
      ...{ user: BODY.user, history: HISTORY, time: BODY.time, model: 'small-research' },
      candidates: itemsOf({ body }),
    })
    assert.deepEqual(itemsOf(ranked), itemsOf({ body }))
    ranked.body.items.forEach(({ score }: { score: number }, i: number) => {
      assert.ok(Math.abs(score - body.items[i].score) < 1e-5)
    })
  })

  test('explains where every item lies in the list, and what was done', async () => {
    const { body } = await retrieve({ explain: true, exclude: ['40', 'nobody'] })
    const { explain, items, warnings } = body
    assert.deepEqual(
      items.map(({ item, index }: { item: string; index: number }) => Number(item) - index),
      Array(7).fill(1),
    )
    const { listed, excluded, chunkMs, chunkItems, historyTokens, retries, unknownItems } = explain
    assert.deepEqual([listed, excluded, historyTokens, retries], [40, 4, 2, 0])
    assert.equal(chunkMs.length, 1)
    assert.equal(chunkItems, Math.floor(2 ** 22 / (4 * 12)))
    assert.deepEqual(unknownItems.exclude, { count: 1, items: ['nobody'] })
    assert.equal(warnings[0].code, 'UNKNOWN_ITEM')
    assert.ok(explain.kv.predictedMs > 0)
    assert.ok(explain.timings.parseMs >= 0)
  })

  test('reads the stored history where the request has none', async () => {
    const given = await retrieve({ user: { id: 'u2' } })
    await served.send('POST', '/v1/users/u2/events', { events: HISTORY })
    const { history: _, ...body } = BODY
    const stored = await served.send('POST', '/v1/retrieve', {
      ...{ ...body, user: { id: 'u2' } },
      model: 'small-research',
    })
    assert.deepEqual(stored.body.items, given.body.items)
    assert.equal(stored.body.kv.state, 'hit')
  })

  test('has what it retrieved ranked by another model: as two requests would', async () => {
    const { config } = paper
    const { histories, user, series, time } = randomRequest(config, createRandom(3), {
      ...{ user: 'u3', events: 6, candidates: 1, series: 2 },
    })
    const [history = []] = histories
    const request = { user, history, series, time, topK: 9 }
    const weights = { click: 1, seconds: 0.5 }
    const { status, body } = await retrieve({
      ...request,
      rank: { model: 'small', topK: 5, weights },
    })
    assert.equal(status, 200)
    const retrieved = await retrieve({
      ...{ time, topK: 9, user: { id: user.id } },
      history: history.map(({ item, time }) => ({ item, time })),
    })
    const ranked = await served.send('POST', '/v1/rank', {
      ...{ user, history, series, time, weights, topK: 5, model: 'small' },
      candidates: itemsOf(retrieved),
    })
    const scores = new Map(
      retrieved.body.items.map(({ item, score }: Json) => [item, score] as const),
    )
    const expected = ranked.body.items.map(({ item, score, tasks }: Json) => ({
      ...{ item, score, tasks },
      retrievalScore: scores.get(item),
    }))
    assert.deepEqual(body.items, expected)
    assert.equal(body.rank.model, `small@${paper.bundle.manifest.version}`)
    assert.deepEqual(Object.keys(body.rank), ['model', 'kv', 'timings'])
    const none = await retrieve({
      history: Array.from({ length: 20 }, (_, i) => ({ item: `${i + 1}`, time: TIME + i })),
      exclude: Array.from({ length: 20 }, (_, i) => `${i + 21}`),
      rank: { model: 'small' },
    })
    assert.deepEqual([none.status, none.body.items, none.body.rank], [200, [], undefined])
  })

  test('refuses what is wrong with a code and a path', async () => {
    const id = (model: typeof paper) => `${model.config.name}@${model.bundle.manifest.version}`
    const cases: readonly (readonly [object, number, string, string, RegExp])[] = [
      [
        { model: 'small' },
        ...[400, 'INVALID_REQUEST', '/model'],
        new RegExp(`must be a model with a retrieval head, "${id(research)}", got "${id(paper)}"`),
      ] as const,
      [{ model: 'other' }, 404, 'MODEL_NOT_FOUND', '/model', /no model "other"/],
      [{ topK: 0 }, 400, 'INVALID_REQUEST', '/topK', />= 1/],
      [{ topK: 10_001 }, 400, 'INVALID_REQUEST', '/topK', /<= 10000/],
      [{ exclude: ['1', 2] }, 400, 'INVALID_REQUEST', '/exclude/1', /must be string, got 2/],
      [
        { exclude: Array(LIMITS.maxHistoryEvents + 1).fill('1') },
        ...[422, 'LIMIT_EXCEEDED', '/exclude'],
        /excluded items must be at most 20, got 21/,
      ] as const,
      [{ candidates: ['1'] }, 400, 'INVALID_REQUEST', '', /unknown fields: "candidates"/],
      [{ rank: {} }, 400, 'INVALID_REQUEST', '/rank', /lacks the fields: "model"/],
      [{ rank: { model: 'x' } }, 404, 'MODEL_NOT_FOUND', '/rank/model', /no model "x"/],
      [
        { rank: { model: 'small', weights: { clicks: 1 } } },
        ...[400, 'INVALID_REQUEST', '/rank/weights/clicks'],
        /must name tasks/,
      ] as const,
      [
        { topK: LIMITS.maxCandidates + 1, rank: { model: 'small' } },
        ...[422, 'LIMIT_EXCEEDED', '/topK'],
        /items to rank must be at most 10, got 11/,
      ] as const,
      [
        { history: [{ item: '1', time: 5, actions: ['click'] }] },
        ...[400, 'INVALID_REQUEST', '/history/0/actions/0'],
        /the model has no actions/,
      ] as const,
      [
        { history: [{ item: '1', time: 5, actions: ['bought'] }], rank: { model: 'small' } },
        ...[400, 'INVALID_REQUEST', '/history/0/actions/0'],
        /unknown action "bought"/,
      ] as const,
    ]
    for (const [change, status, code, path, message] of cases) {
      const answer = await retrieve(change)
      const { body } = answer
      const what = JSON.stringify(change).slice(0, 80)
      assert.deepEqual([answer.status, body.code, body.path ?? ''], [status, code, path], what)
      assert.match(body.message, message, what)
    }
  })

  test('takes the example of its document', async () => {
    const doc = await served.send('GET', '/docs/json')
    const [example] = doc.body.components.schemas.RetrieveRequest.examples
    const { status, body } = await retrieve(example)
    assert.deepEqual([status, body.items.length], [200, 10])
  })

  test('reads and writes MessagePack', async () => {
    const res = await served.app.inject({
      ...{ method: 'POST', url: '/v1/retrieve' },
      headers: { accept: 'application/msgpack' },
      payload: { ...BODY, model: 'small-research' },
    })
    const { body } = await retrieve({})
    const answer: Json = decode(res.rawPayload)
    assert.deepEqual(answer.items, body.items)
  })

  test('is counted: K/V, stages, items compared', async () => {
    const text = await served.metrics()
    const model = `model="small-research@${research.bundle.manifest.version}"`
    const value = (line: string) => {
      const found = text.split('\n').find((each) => each.startsWith(`${line} `))
      return Number(found?.slice(line.length + 1))
    }
    const times = value(`peregrine_retrieve_seconds_count{${model}}`)
    assert.ok(times > 5)
    assert.equal(value(`peregrine_items_searched_total{${model}}`), 40 * times)
    assert.equal(value('peregrine_stage_seconds_count{stage="search"}'), times)
    assert.equal(value('peregrine_stage_seconds_count{stage="encode"}'), times)
    assert.ok(value(`peregrine_kv_lookups_total{${model},state="hit",tier="1"}`) > 0)
    assert.ok(value(`peregrine_tokens_prefilled_total{${model}}`) > 0)
  })

  test('says in GET /v1/models who can retrieve', async () => {
    const { body } = await served.send('GET', '/v1/models')
    assert.deepEqual(
      body.models.map(({ name, retrieval }: Json) => [name, retrieval?.items]).sort(),
      [
        ['small', undefined],
        ['small-research', 40],
      ],
    )
  })
})

test('a lone model without a retrieval head is refused as well', async (t) => {
  const post = await client(t)
  const res = await post({ user: { id: 'u' }, history: [] }, '/v1/retrieve')
  assert.equal(res.statusCode, 400)
  const { code, path, message } = res.json()
  assert.deepEqual([code, path], ['INVALID_REQUEST', '/model'])
  assert.match(message, /retrieval head, none that is loaded, got "toy@abc123"/)
})

test('a ranking of more items than the list has is priced as one of the list', async (t) => {
  const plain = rankerOf()
  const asked: number[] = []
  const ranker = {
    ...plain,
    model: { ...plain.model, retrieval: { items: 3, chunkItems: 3 } },
    predictRetrieveMs: () => 1,
    predictMs: (input: Parameters<typeof plain.predictMs>[0]) => {
      asked.push(input.candidates.length)
      return 1
    },
  }
  const post = await client(t, undefined, { ranker: () => ranker })
  for (const topK of [2, 3, 10]) {
    await post({ user: { id: 'u' }, history: [], topK, rank: { model: 'toy' } }, '/v1/retrieve')
  }
  assert.deepEqual(asked, [2, 3, 3])
})
