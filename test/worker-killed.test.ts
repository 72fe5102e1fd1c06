// Workers of engine `node` die under load over HTTP. (One of `capi` is a thread of the process and dies with it:
// scale-out.test.ts kills that.)
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Registry } from 'prom-client'
import { createRanker } from '../falcon/rank.js'
import type { RankResult } from '../falcon/types.js'
import { largestDifference } from '../falcon/verify.js'
import type { Engine } from '../model/engine/engine.js'
import { createNodeEngine } from '../model/engine/node/pool.js'
import { RankError } from '../model/errors.js'
import { createRandom } from '../model/random.js'
import { createOracle } from './fault-load.js'
import { exportModel, randomRequest, smallConfig } from './fixtures.js'
import { appOf, LIMITS } from './plain-ranker.js'
import { until } from './redis.js'

const SEED = 17
const WORKERS = 2
const KILLS = 4
const USERS = 8
const EVENTS = 60
/** Answers between two kills. */
const SOME = 20
const LARGEST_DIFFERENCE = 1e-5

describe('workers that die under load', () => {
  test('cost no request and no right answer; only what they had in hand runs again', async (t) => {
    const config = smallConfig({ maxTokens: 200, positions: 150 })
    const model = exportModel(t, { config })
    const oracle = await createOracle(model)
    t.after(oracle.close)
    const crashed: string[] = []
    const nodeEngine = await createNodeEngine({
      bundle: model.bundle,
      workers: WORKERS,
      onEvent: ({ kind }) => void crashed.push(kind),
    })
    const { engine, lost } = countLost(nodeEngine)
    const { bundle } = model
    const ranker = createRanker({ engine, bundle, microBatchSize: 3, maxKvBytes: 1e8 })
    const registry = new Registry()
    const limits = { ...LIMITS, maxHistoryEvents: 1000, maxQueueMs: 60_000 }
    const app = await appOf(undefined, { ranker: () => ranker, config: limits, registry })
    t.after(async () => {
      await app.close()
      await ranker.close()
    })
    const url = await app.listen({ host: '127.0.0.1', port: 0 })

    let answers = 0
    let retries = 0
    let isOver = false
    const underWay = new Map<number, Promise<void>>()
    /** One user's request, the history an event longer each time; rejects unless the answer is right. */
    const ask = async (user: number, events: number) => {
      const whole = randomRequest(config, createRandom(SEED + user), {
        user: `u${user}`,
        events: EVENTS,
        candidates: 7,
      })
      const [history = []] = whole.histories
      // An answer names the item: no two are the same.
      const candidates = whole.candidates.map((one, i) => ({ ...one, item: String(i + 1) }))
      const input = { ...whole, candidates, histories: [history.slice(0, events)] }
      const { histories, series: _, ...rest } = input
      const response = await fetch(`${url}/v1/rank`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ ...rest, history: histories[0], explain: true }),
      })
      const body: RankResult & { readonly explain: { readonly retries: number } } =
        await response.json()
      assert.equal(response.status, 200, JSON.stringify(body))
      const right = await oracle.logits(input)
      const difference = largestDifference(logitsOf(candidates, body), right)
      assert.ok(difference <= LARGEST_DIFFERENCE, `off by ${difference}`)
      answers++
      retries += body.explain.retries
    }
    const callers = Array.from({ length: USERS }, async (_, user) => {
      for (let i = 0; !isOver; i++) {
        const answer = ask(user, 20 + (i % (EVENTS - 20)))
        underWay.set(user, answer)
        await answer
      }
    })
    const kill = async () => {
      for (let i = 0; i < KILLS; i++) {
        const enough = answers + SOME
        await until(`${SOME} answers`, () => answers >= enough)
        // No message that it knows: it throws between two runs, with all that waits for it. Inside a run
        // nothing but the process can die.
        nodeEngine.threads()[i % WORKERS]?.postMessage(null)
        await until('its replacement', () => nodeEngine.stats().restarts === i + 1)
        await Promise.all(underWay.values())
      }
    }
    const failed = Promise.all(callers)
    try {
      await Promise.race([kill(), failed])
    } finally {
      isOver = true
      await Promise.allSettled(callers)
    }
    await failed

    t.diagnostic(
      `${answers} answers, ${retries} ran again, ${lost()} jobs lost in ${KILLS} crashes`,
    )
    assert.equal(crashed.filter((kind) => kind === 'crash').length, KILLS)
    assert.ok(retries > 0, 'nobody felt anything')
    assert.ok(retries <= lost(), 'what ran again had lost a job of its own')
    assert.ok(retries <= KILLS * USERS, 'nothing ran again twice')
    const metrics = await registry.metrics()
    assert.match(metrics, new RegExp(`^peregrine_retries_total ${retries}$`, 'm'))
    assert.match(
      metrics,
      new RegExp(`^peregrine_engine_restarts_total\\{model="[^"]+"\\} ${KILLS}$`, 'm'),
    )
  })
})

/** The same engine, with the jobs counted that a crash took. */
function countLost(inner: Engine) {
  let lost = 0
  const counted = async <T>(job: Promise<T>): Promise<T> => {
    try {
      return await job
    } catch (error) {
      if (error instanceof RankError && error.code === 'WORKER_CRASHED') lost++
      throw error
    }
  }
  const engine: Engine = {
    ...inner,
    prefill: (...args) => counted(inner.prefill(...args)),
    score: (...args) => counted(inner.score(...args)),
    rank: (...args) => counted(inner.rank(...args)),
  }
  return { engine, lost: () => lost }
}

/** In the order of the candidates. */
function logitsOf(
  candidates: readonly { readonly item: string }[],
  { items }: Pick<RankResult, 'items'>,
): number[] {
  return candidates.flatMap(({ item }) => items.find((one) => one.item === item)?.logits ?? [])
}
