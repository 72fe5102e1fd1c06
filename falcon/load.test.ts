import assert from 'node:assert/strict'
import { after, describe, test } from 'node:test'
import { createRandom } from '../model/random.js'
import { copyBundle, exportModel, randomRequest, reseal } from '../test/fixtures.js'
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
      redisConnections: 1,
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
    const roles = ['events', 'forgets', 'kv-read-0', 'kv-write']
    const turns = () =>
      events.flatMap((event) => ('role' in event ? [`${event.role} ${event.kind}`] : []))
    await until('every connection', () => turns().length === 2 * roles.length)
    assert.deepEqual(
      turns().toSorted(),
      roles.flatMap((role) => [`${role} redisLost`, `${role} redisReady`]),
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

describe('loadRanker', () => {
  for (const background of [false, true]) {
    const how = background ? 'beside traffic' : 'at start-up'
    test(`refuses a bundle that another takes the place of as it loads ${how}`, async (t) => {
      const folder = copyBundle(t, model.bundle)
      const replace = ({ kind }: LoadEvent) => {
        if (kind !== 'verified') return
        reseal(folder, (manifest) => {
          manifest.producer = 'another'
        })
      }
      await assert.rejects(
        loadRanker({ bundle: folder, background, workers: 1, onEvent: replace }),
        {
          code: 'BUNDLE_INVALID',
          message: /was version \w+ and became \w+ while it was loaded$/,
        },
      )
    })
  }
})
