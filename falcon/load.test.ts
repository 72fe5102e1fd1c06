import assert from 'node:assert/strict'
import { after, describe, test } from 'node:test'
import { createRandom } from '../model/random.js'
import { exportModel, randomRequest } from '../test/fixtures.js'
import { NO_REDIS, startRedis, until } from '../test/redis.js'
import { type LoadEvent, loadRanker } from './load.js'

const model = exportModel({ after })
const input = {
  ...randomRequest(model.config, createRandom(1), { events: 0, candidates: 3 }),
  histories: [],
}
const EVENT = { item: '1', time: 5, actions: ['click'] }

describe('loadRanker', { skip: NO_REDIS }, () => {
  test('loads and ranks while Redis is away or denies the login, and uses it when it comes', async (t) => {
    const server = await startRedis(t)
    await server.kill()
    const events: LoadEvent[] = []
    const ranker = await loadRanker({
      bundle: model.bundle.folder,
      engine: 'node',
      workers: 1,
      microBatchSize: 4,
      redisUrl: server.url.replace('//', '//alice:s3cret@'),
      maxStoredEvents: 32,
      onEvent: (event) => events.push(event),
    })
    t.after(() => ranker.close())
    const unavailable = async () => {
      const { warnings, scored } = await ranker.rank(input, { useStored: true })
      assert.equal(scored, 3)
      return warnings.some(({ code }) => code === 'HISTORY_UNAVAILABLE')
    }
    assert.ok(await unavailable())
    await server.restart()
    assert.ok(await unavailable(), 'nobody knows alice')
    assert.deepEqual(ranker.stats().events, { kind: 'redis', isConnected: false })
    await server.cli('acl', 'setuser', 'alice', 'on', '>s3cret', '~peregrine:*', '+@all')
    await until('the login', async () => !(await unavailable()))
    await until('the other connection', () => ranker.stats().forgets?.gaps === 1)
    assert.deepEqual(
      events
        .flatMap((event) => ('role' in event ? [`${event.role} ${event.kind}`] : []))
        .toSorted(),
      ['events redisLost', 'events redisReady', 'forgets redisLost', 'forgets redisReady'],
    )
    assert.doesNotMatch(JSON.stringify(events), /s3cret/)

    const many = Array.from({ length: 100 }, (_, i) => ({ ...EVENT, time: i }))
    const { total, trimmed } = await ranker.appendEvents('u', many)
    assert.deepEqual([total, trimmed], [34, 66], 'slack is a sixteenth')
    await ranker.forget('u')
    assert.deepEqual(await ranker.eventsOf('u'), [])
  })

  test('refuses a URL that is none before anything is loaded', async () => {
    await assert.rejects(loadRanker({ bundle: 'no/such/folder', redisUrl: 'redis:cache' }), {
      code: 'CONFIG_INVALID',
      message: /^a Redis URL must/,
    })
  })
})
