import assert from 'node:assert/strict'
import { describe, type TestContext, test } from 'node:test'
import type { HistoryEvent } from '../model/request.js'
import { startProxy } from '../test/proxy.js'
import { NO_REDIS, startRedis, until } from '../test/redis.js'
import { createRedisEvents } from './events-redis.js'
import { eventsKey, userHash } from './key.js'
import { connectRedis } from './redis.js'
import { parseRedisUrl } from './redis-url.js'

const LIMITS = { maxStoredEvents: 10_000, slack: 100, ttlSec: 1000 }
const alice = userHash('alice')
const events = (count: number): HistoryEvent[] =>
  Array.from({ length: count }, (_, time) => ({ time, item: `i${time}` }))

async function open(t: TestContext, url: string, commandTimeoutMs = 5000, limits = LIMITS) {
  const client = connectRedis(parseRedisUrl(url), {
    role: 'test',
    commandTimeoutMs,
    random: () => 0,
  })
  const store = createRedisEvents(client, limits)
  t.after(() => store.close())
  await until('the connection', () => client.status === 'ready')
  return store
}

const UNAVAILABLE = { code: 'STORE_UNAVAILABLE' }

describe('createRedisEvents', { skip: NO_REDIS }, () => {
  test('replicas that append for one user at the same time lose and double nothing', async (t) => {
    const { url } = await startRedis(t)
    const stores = await Promise.all(Array.from({ length: 8 }, () => open(t, url)))
    const all = events(400)
    const stored = await Promise.all(
      stores.map(async (store, i) => {
        let count = 0
        for (let at = 0; at < all.length; at += 5) {
          // Overlapping batches, from other starts, some of them backwards.
          const start = (at + i * 50) % all.length
          const batch = [...all, ...all].slice(start, start + 8)
          count += (await store.append(alice, i % 2 === 0 ? batch : batch.toReversed())).stored
        }
        return count
      }),
    )
    assert.equal(
      stored.reduce((sum, count) => sum + count),
      all.length,
    )
    for (const store of stores) assert.deepEqual((await store.get(alice)).events, all)
  })

  test('a retry after a connection that was cut gets the answer that was lost', async (t) => {
    const server = await startRedis(t)
    const proxy = await startProxy(t, server.port)
    const store = await open(t, `redis://127.0.0.1:${proxy.port}`)
    proxy.cutAtNextAnswer()
    // The first answer asks for the script; only then is anything appended.
    await assert.rejects(store.append(alice, events(3), 'first'), UNAVAILABLE)
    await until(
      'the append',
      async () => (await store.append(alice, events(3), 'first')).stored === 3,
    )

    proxy.cutAtNextAnswer()
    await assert.rejects(store.append(alice, events(7), 'second'), UNAVAILABLE)
    assert.equal(await server.cli('zcard', eventsKey(alice)), '7', 'it did happen')
    let answer: unknown
    await until('the connection', async () => {
      answer = await store.append(alice, events(7), 'second')
      return true
    })
    assert.deepEqual(answer, { stored: 4, duplicates: 3, total: 7, trimmed: 0 })
    // Without a key it is as safe, but says that nothing was new.
    const again = await store.append(alice, events(7))
    assert.deepEqual(again, { stored: 0, duplicates: 7, total: 7, trimmed: 0 })
  })

  test('a server that is down, silent, full or denies says so in time, and nothing is half done', async (t) => {
    const server = await startRedis(t, { config: ['maxmemory-policy noeviction'] })
    const store = await open(t, server.url, 300)
    await store.append(alice, events(3))

    await server.cli('config', 'set', 'maxmemory', '1')
    await assert.rejects(store.append(alice, events(5), 'k'), { ...UNAVAILABLE, message: /OOM/ })
    assert.equal((await store.get(alice)).events.length, 3)
    await server.cli('config', 'set', 'maxmemory', '0')

    await server.cli('acl', 'setuser', 'default', '-zrange')
    await assert.rejects(store.get(alice), { ...UNAVAILABLE, message: /NOPERM/ })
    await server.cli('acl', 'setuser', 'default', '+@all')

    server.pause()
    const all = await Promise.allSettled([
      store.get(alice),
      store.append(alice, events(5), 'secret key'),
      store.forget(alice),
    ])
    server.resume()
    for (const result of all) {
      assert.ok(result.status === 'rejected')
      assert.equal(result.reason.code, 'STORE_UNAVAILABLE')
      assert.match(result.reason.message, /no answer in time/)
      assert.equal(result.reason.cause, undefined, 'a command has the events in it')
    }

    await server.kill()
    for (const call of [
      () => store.get(alice),
      () => store.append(alice, events(5)),
      () => store.forget(alice),
    ]) {
      await until('the loss', () =>
        call().then(
          () => false,
          (error) => /no connection/.test(error.message),
        ),
      )
    }
    await server.restart()
    await until('the connection', async () => (await store.append(alice, events(5))).stored === 5)
  })

  test('what is not an event is not taken for one', async (t) => {
    const server = await startRedis(t)
    const store = await open(t, server.url)
    for (const text of ['x', '1', 'null', '{"time":1}', '{"time":"1","item":"a"}', '1,2']) {
      await server.cli('zadd', eventsKey(alice), '1', text)
      await assert.rejects(store.get(alice), UNAVAILABLE, text)
      await assert.rejects(store.get(alice, 5), UNAVAILABLE, text)
      await store.forget(alice)
    }
    await server.cli('set', eventsKey(alice), 'x')
    await assert.rejects(store.get(alice), { ...UNAVAILABLE, message: /WRONGTYPE/ })
  })

  test('a user expires some time after the last append, an answer after its own', async (t) => {
    const server = await startRedis(t)
    const store = await open(t, server.url)
    const ttl = async () => Number(await server.cli('ttl', eventsKey(alice)))
    await store.append(alice, events(3), 'k')
    assert.ok((await ttl()) > LIMITS.ttlSec - 60 && (await ttl()) <= LIMITS.ttlSec)
    await server.cli('expire', eventsKey(alice), '5')
    await store.get(alice)
    assert.ok((await ttl()) <= 5)
    await store.append(alice, events(3))
    assert.ok((await ttl()) > 5)
    const keys = (await server.cli('keys', '*')).split('\n')
    assert.equal(keys.length, 2)
    const answerTtl = Number(
      await server.cli('ttl', keys.find((key) => key.includes('append')) ?? ''),
    )
    assert.ok(answerTtl > 86_000 && answerTtl <= 86_400)
  })

  test('appends of every size around the pairs that one ZADD takes are whole', async (t) => {
    const { url } = await startRedis(t)
    const store = await open(t, url)
    for (const count of [0, 1, 1999, 2000, 2001, 4000, 4001, 9999]) {
      await store.forget(alice)
      const answer = await store.append(alice, events(count))
      assert.deepEqual(answer, { stored: count, duplicates: 0, total: count, trimmed: 0 })
      assert.deepEqual((await store.get(alice)).events, events(count))
    }
  })
})
