import assert from 'node:assert/strict'
import { test } from 'node:test'
import { watchDevice } from '../model/engine/capi/device-watch.js'
import { createCountingEngine, plainTokens } from './counting-engine.js'
import { appOf, rankerOf } from './plain-ranker.js'

test('/readyz turns 503 when a job fails and the GPU refuses every call since', async (t) => {
  const engine = createCountingEngine()
  const events: string[] = []
  const probe = () => {
    throw new Error('CUDA: uncorrectable ECC error encountered')
  }
  const watched = watchDevice(engine, probe, ({ kind }) => events.push(kind))
  const plain = rankerOf()
  const stats = () => ({ ...plain.stats(), engine: watched.stats() })
  const app = await appOf(undefined, { ranker: () => ({ ...plain, stats }) })
  t.after(() => app.close())
  assert.equal((await app.inject('/readyz')).statusCode, 200)
  engine.failNext(1)
  await assert.rejects(watched.prefill(plainTokens(3)), { code: 'WORKER_CRASHED' })
  const res = await app.inject('/readyz')
  assert.equal(res.statusCode, 503)
  assert.deepEqual(res.json(), { status: 'crashed' })
  assert.deepEqual(events, ['deviceLost'])
})
