// Replicas in processes of their own behind nginx, on a Redis Cluster: what npm run bench:scaleout measures, in short.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { scaleOut } from '../bench/scaleout/scenario.js'
import { createTraffic } from '../bench/traffic.js'
import { exportRandom } from '../bench/workload.js'
import { createRanker } from '../falcon/rank.js'
import { createEngine } from '../model/engine/create.js'
import { randomConfig } from '../model/export/random.js'
import { tempFolder } from './fixtures.js'
import { NO_NGINX } from './nginx.js'
import { NO_REDIS, until } from './redis.js'

const SEED = 5
const PER_SECOND = 30
/** Answers between two events. */
const SOME = 40
/** More than a page of tokens, so that Redis gets them at once. */
const SIZE = { users: 12, leastEvents: 70, mostEvents: 80 }

describe('three replicas behind nginx', { skip: NO_NGINX || NO_REDIS }, () => {
  test('no request fails and no answer is wrong while one is killed and all are restarted', async (t) => {
    const shape = { layers: 2, dModel: 16, heads: 2, maxTokens: 200, items: 1000 }
    const bundle = exportRandom(randomConfig(shape), `${tempFolder(t)}/bundle`)
    const engine = await createEngine({ bundle, workers: 1 })
    t.after(() => engine.close())
    const oracle = createRanker({ engine, bundle, microBatchSize: 64, maxKvBytes: 1 })
    const traffic = createTraffic((input) => oracle.rank(input, {}), SEED, SIZE)
    const { outcome, moments, passed } = await scaleOut(t, {
      bundle,
      traffic,
      perSecond: PER_SECOND,
      calm: () => {
        const enough = traffic.answers() + SOME
        return until(`${SOME} answers more`, () => traffic.answers() >= enough)
      },
    })
    const { samples, failed, wrong, largestDifference } = outcome
    t.diagnostic(`${samples.length} answers, largest difference ${largestDifference}`)
    assert.deepEqual({ failed, wrong }, { failed: 0, wrong: 0 })
    assert.ok(samples.length >= moments.length * SOME)

    const killedAt = moments[0]?.atMs ?? 0
    const tiersOf = (some: typeof samples) => new Set(some.map(({ tier }) => tier))
    // What was under way at the kill may have gone on to another replica.
    const before = tiersOf(samples.filter(({ dueMs, ms }) => dueMs + ms < killedAt))
    const after = tiersOf(samples.filter(({ dueMs }) => dueMs > killedAt))
    assert.deepEqual(before, new Set([1]), 'a user stays at one replica while all live')
    assert.ok(after.has(2), 'other replicas find the K/V in Redis')
    const retried = passed.filter(({ upstream }) => upstream.includes(','))
    assert.ok(retried.length > 0, 'nobody felt anything')
    assert.equal(passed.length, samples.length)
  })
})
