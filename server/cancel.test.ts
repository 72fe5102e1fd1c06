// Nobody waits for the answer of a client that is gone: real engines, real sockets.
import assert from 'node:assert/strict'
import { request as httpRequest } from 'node:http'
import { after, describe, test } from 'node:test'
import { createRanker } from '../falcon/rank.js'
import type { RankResult } from '../falcon/types.js'
import { deferred } from '../model/deferred.js'
import { countHandles, KINDS, occupy, openEngine } from '../test/engines.js'
import { exportModel } from '../test/fixtures.js'
import { appOf } from '../test/plain-ranker.js'
import { createLogger } from './log.js'

const model = exportModel({ after })

const rankingOf = (id: string) => ({
  user: { id },
  history: [{ item: '1', time: 5, actions: ['click'] }],
  candidates: ['1', '2', '3'],
})

for (const kind of KINDS) {
  describe(`a client that leaves while its ranking waits for engine ${kind}`, () => {
    for (const [url, users] of [
      ['/v1/rank', ['u1']],
      ['/v1/rank/batch', ['u1', 'u2', 'u1']],
    ] as const) {
      test(`${url} drops the work, and is counted once as CANCELLED`, async (t) => {
        const engine = countHandles(await openEngine(kind, model))
        const options = { bundle: model.bundle, microBatchSize: 2, maxKvBytes: 1e9 }
        const ranker = createRanker({ engine, ...options })
        const arrived = deferred<void>()
        const rankings: Promise<RankResult>[] = []
        const lines: string[] = []
        const app = await appOf(
          (...args) => {
            const ranking = ranker.rank(...args)
            rankings.push(ranking)
            if (rankings.length === users.length) arrived.resolve()
            return ranking
          },
          { logger: createLogger('info', { write: (line) => void lines.push(line) }) },
        )
        t.after(() => app.close())
        const load = await occupy(engine, model)
        const request = httpRequest(`${await app.listen({ port: 0 })}${url}`, {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
        })
        request.on('error', () => {})
        const requests = users.map(rankingOf)
        request.end(JSON.stringify(requests.length === 1 ? requests[0] : { requests }))
        await arrived.promise
        request.destroy()
        for (const ranking of rankings) await assert.rejects(ranking, { code: 'CANCELLED' })
        assert.equal(load.isBusy(), true, 'the engine had other work all the time')
        await load.giveUp()
        assert.equal(engine.stats().pendingJobs, 0)
        assert.equal(rankings.length, users.length, 'no second try')
        const metrics = (await app.inject('/metrics')).body.split('\n')
        for (const line of [
          `peregrine_requests_total{route="${url}",status="499"} 1`,
          'peregrine_errors_total{code="CANCELLED"} 1',
          'peregrine_inflight_requests 0',
        ]) {
          assert.ok(metrics.includes(line), line)
        }
        const logged = lines.map((line) => JSON.parse(line))
        assert.deepEqual(
          logged
            .filter((line) => line.route === url || line.level === 'error')
            .map(({ level, status, code }) => [level, status, code]),
          [['info', 499, 'CANCELLED']],
        )
        await ranker.close()
        assert.equal(engine.live(), 0)
      })
    }
  })
}
