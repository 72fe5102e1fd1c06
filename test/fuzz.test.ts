import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import type { FastifyInstance, InjectOptions } from 'fastify'
import { Registry } from 'prom-client'
import { fuzzServer, type Send } from '../bench/fuzz/target.js'
import { loadRanker } from '../falcon/load.js'
import type { Ranker } from '../falcon/types.js'
import { parseConfig } from '../model/config.js'
import { RankError } from '../model/errors.js'
import { buildApp } from '../server/app.js'
import { exportModel, SMALL } from './fixtures.js'
import { appOf, LIMITS, resultOf } from './plain-ranker.js'
import { SMALL_RESEARCH } from './small-checkpoints.js'

const REQUESTS = 2_000
const SEED = 20
const RETRIEVALS = 1_000
// Room for prefetches that go on behind their answers.
const CONFIG = { ...LIMITS, maxHistoryEvents: 400, maxCandidates: 400 }
const WORDS = {
  item: Array.from({ length: 32 }, (_, i) => `${i}`),
  candidates: Array.from({ length: 32 }, (_, i) => `${i}`),
  features: [...SMALL.context, ...SMALL.itemFeatures].map(({ name }) => name),
  series: SMALL.auxiliary.map(({ name }) => name),
}
const ORACLE = {
  user: { id: 'oracle', features: { country: 2 } },
  history: [
    { item: '3', time: 1_700_000_000, actions: ['click'], features: { author: 4, tag: 1 } },
    { item: '9', time: 1_700_000_500, features: { author: 2 } },
  ],
  candidates: ['1', '2', '3', '4', '5'],
  time: 1_700_001_000,
}

describe('a server that is fuzzed by its own OpenAPI document', () => {
  let ranker: Ranker
  let app: FastifyInstance
  before(async () => {
    const { bundle } = exportModel({ after })
    ranker = await loadRanker({ bundle: bundle.folder, workers: 1, microBatchSize: 16 })
    app = await buildApp({ ranker: () => ranker, config: CONFIG, registry: new Registry() })
  })
  after(async () => {
    await app?.close()
    await ranker?.close()
  })

  test(`answers ${REQUESTS} requests as documented, never with 500, and scores as before`, async () => {
    const rank = async () => {
      const res = await app.inject({ method: 'POST', url: '/v1/rank', payload: ORACLE })
      return res.json().items
    }
    const names = Object.getOwnPropertyNames(Object.prototype)
    const before = await rank()
    const { counts, faults } = await fuzzServer({
      send: sendTo(app),
      count: REQUESTS,
      seed: SEED,
      words: WORDS,
    })
    assert.deepEqual(
      faults.map(({ request, ...rest }) => ({
        ...rest,
        body: `${request.payload ?? request.url}`,
      })),
      [],
    )
    // Not all noise: each of these ranked, stored or prefetched something, and refused something.
    const infer = ['/v2/models/{name}/infer', '/v2/models/{name}/versions/{version}/infer']
    const paths = ['/v1/rank', '/v1/rank/batch', '/v1/prefetch', '/v1/users/{id}/events', ...infer]
    for (const path of paths) {
      const statuses = counts.get(`POST ${path}`)
      const taken = (statuses?.get(200) ?? 0) + (statuses?.get(202) ?? 0)
      assert.ok(taken > REQUESTS / 100, `${path} took ${taken}`)
      assert.ok((statuses?.get(400) ?? 0) > REQUESTS / 100, path)
    }
    assert.deepEqual(await rank(), before)
    assert.deepEqual(Object.getOwnPropertyNames(Object.prototype), names)
  })
})

describe('a server whose model retrieves, fuzzed alike', () => {
  test(`answers ${RETRIEVALS} requests as documented, never with 500`, async (t) => {
    const { bundle } = exportModel(t, { config: parseConfig(SMALL_RESEARCH) })
    const ranker = await loadRanker({ bundle: bundle.folder, workers: 1, microBatchSize: 16 })
    t.after(() => ranker.close())
    const app = await buildApp({ ranker: () => ranker, config: CONFIG, registry: new Registry() })
    t.after(() => app.close())
    const { counts, faults } = await fuzzServer({
      ...{ send: sendTo(app), count: RETRIEVALS, seed: SEED },
      words: { ...WORDS, exclude: WORDS.item },
    })
    assert.deepEqual(faults, [])
    const statuses = counts.get('POST /v1/retrieve')
    assert.ok((statuses?.get(200) ?? 0) > RETRIEVALS / 200, `${statuses?.get(200)} answered`)
    assert.ok((statuses?.get(400) ?? 0) > RETRIEVALS / 200, `${statuses?.get(400)} refused`)
  })
})

describe('the fuzzer', () => {
  test('finds a 500, an answer that breaks its schema, and a status that is not documented', async (t) => {
    const faultsOf = async (rank: Ranker['rank']) => {
      const broken = await appOf(rank, { config: CONFIG })
      t.after(() => broken.close())
      const { faults } = await fuzzServer({ send: sendTo(broken), count: 60, seed: SEED })
      return new Set(faults.map(({ why }) => why))
    }
    const thrown = await faultsOf(async () => {
      throw new Error('boom')
    })
    assert.deepEqual([...thrown], ['must never be 500'])
    const notANumber = await faultsOf(async (input) => {
      const result = resultOf(input)
      return { ...result, items: result.items.map((item) => ({ ...item, score: Number.NaN })) }
    })
    assert.match([...notANumber].join(), /\/items\/0\/score must be number/)
    const cancelled = await faultsOf(async () => {
      throw new RankError('CANCELLED', 'nobody waits')
    })
    assert.deepEqual([...cancelled], ['status 499 is not documented'])
  })
})

function sendTo(app: FastifyInstance): Send {
  return async ({ method, url, headers, payload }) => {
    const options: InjectOptions = { url, headers, ...(payload !== undefined && { payload }) }
    const res = await app.inject({ ...options, method: methodOf(method) })
    return { status: res.statusCode, headers: res.headers, body: res.body }
  }
}

function methodOf(name: string) {
  const method = (['GET', 'POST', 'PUT', 'PATCH', 'DELETE'] as const).find((one) => one === name)
  assert.ok(method !== undefined, name)
  return method
}
