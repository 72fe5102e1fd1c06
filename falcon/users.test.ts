import assert from 'node:assert/strict'
import { after, before, describe, type TestContext, test } from 'node:test'
import { createCosts } from '../cache/costs.js'
import { DEFAULT_EVENT_LIMITS, type EventStore } from '../cache/events.js'
import { createMemoryEvents } from '../cache/events-memory.js'
import { createRedisEvents } from '../cache/events-redis.js'
import { createForgets } from '../cache/forgets.js'
import { eventsKey, userHash } from '../cache/key.js'
import { connectRedis } from '../cache/redis.js'
import { parseRedisUrl } from '../cache/redis-url.js'
import { deferred } from '../model/deferred.js'
import type { Engine } from '../model/engine/engine.js'
import { createNodeEngine } from '../model/engine/node/pool.js'
import { RankError } from '../model/errors.js'
import { createRandom } from '../model/random.js'
import type { HistoryEvent, RankInput } from '../model/request.js'
import { exportModel, randomRequest } from '../test/fixtures.js'
import { NO_REDIS, type RedisServer, startRedis, until } from '../test/redis.js'
import { createRanker, type RankerOptions } from './rank.js'

const model = exportModel({ after })
let engine: Engine
before(async () => {
  engine = await createNodeEngine({ bundle: model.bundle })
})
after(() => engine.close())

/** A ranker over an engine that is shared: `prefills` counts, `gate` holds them up. */
function open(changes: Partial<RankerOptions> = {}) {
  let prefills = 0
  let gate: Promise<void> | undefined
  const counted: Engine = {
    ...engine,
    async prefill(...args) {
      prefills++
      await gate
      return engine.prefill(...args)
    },
    close: async () => {},
  }
  const options = { bundle: model.bundle, microBatchSize: 2, maxKvBytes: 1e9 }
  return {
    ...createRanker({ engine: counted, ...options, ...changes }),
    prefills: () => prefills,
    hold: () => {
      const held = deferred<void>()
      gate = held.promise
      return () => {
        gate = undefined
        held.resolve()
      }
    },
  }
}

const request = (events: number, seed = 1, user = 'u') =>
  randomRequest(model.config, createRandom(seed), { user, events, candidates: 5 })

/** The request without its history, which is the second result. */
function split(input: RankInput): [RankInput, readonly HistoryEvent[]] {
  return [{ ...input, histories: [] }, input.histories[0] ?? []]
}

const [bare, history] = split(request(12))
const click = (item: string, time: number): HistoryEvent => ({ item, time, actions: ['click'] })
const never = () => new Promise<never>(() => {})
const storeWith = (get: EventStore['get']): EventStore => ({
  ...createMemoryEvents(DEFAULT_EVENT_LIMITS),
  get,
})
const broken = storeWith(async () => {
  throw new RankError('STORE_UNAVAILABLE', 'no connection')
})

describe('a ranking with the stored history', () => {
  test('is the one with the same events in the request, and shares its K/V', async () => {
    const { rank, appendEvents, eventsOf } = open()
    for (const event of history.toReversed()) await appendEvents('u', [event])
    const stored = await eventsOf('u')
    assert.equal(stored.length, history.length)
    const given = await rank({ ...bare, histories: [stored] }, {})
    const result = await rank(bare, { useStored: true })
    assert.deepEqual(result.items, given.items)
    assert.equal(result.kv.state, 'hit')
    assert.notDeepEqual(
      (await rank(bare, {})).items,
      given.items,
      'which is not that of no history',
    )
  })

  test('puts it before the histories of the request at equal times', async () => {
    const { rank, appendEvents } = open()
    const [a, b] = [click('1', 5), click('2', 5)]
    await appendEvents('u', [b])
    const { items } = await rank({ ...bare, histories: [[a]] }, { useStored: true })
    assert.deepEqual(items, (await rank({ ...bare, histories: [[b], [a]] }, {})).items)
    assert.notDeepEqual(items, (await rank({ ...bare, histories: [[a], [b]] }, {})).items)
  })

  test('reads no more of it than the model holds, and tells how much was left out', async () => {
    let read = 0
    const events = createMemoryEvents(DEFAULT_EVENT_LIMITS)
    const get: EventStore['get'] = async (...args) => {
      const stored = await events.get(...args)
      read = stored.events.length
      return stored
    }
    const { rank, appendEvents, eventsOf } = open({ events: { ...events, get } })
    await appendEvents('u', split(request(100))[1])
    const all = await eventsOf('u')
    const given = await rank({ ...bare, histories: [all] }, {})
    const result = await rank(bare, { useStored: true })
    assert.equal(read, Math.floor((66 - 2) / 2))
    assert.deepEqual(result.items, given.items)
    assert.equal(result.kv.state, 'hit')
    assert.equal(result.truncatedEvents, all.length - read)
    assert.deepEqual(result.warnings, given.warnings)
  })

  test('does not wait again for a store that hangs, and finds it when it answers', async () => {
    let asked = 0
    let works = false
    const store = createMemoryEvents(DEFAULT_EVENT_LIMITS)
    const events: EventStore = {
      ...store,
      async get(...args) {
        asked++
        return works ? store.get(...args) : never()
      },
    }
    const { rank, appendEvents, close } = open({ events })
    await appendEvents('u', history)
    const isWithout = async () => {
      const { warnings } = await rank(bare, { useStored: true })
      return warnings.some(({ code }) => code === 'HISTORY_UNAVAILABLE')
    }
    for (let i = 0; i < 6; i++) assert.ok(await isWithout())
    assert.equal(asked, 3)
    works = true
    await until('a probe', async () => !(await isWithout()))
    await close()
  })

  test('goes on without it, with a warning, when the store is away or says nothing in time', async () => {
    for (const events of [broken, storeWith(never)]) {
      const { rank } = open({ events })
      const { items, warnings } = await rank(bare, { useStored: true })
      assert.deepEqual(items, (await rank(bare, {})).items)
      const [first] = warnings
      assert.equal(first?.code, 'HISTORY_UNAVAILABLE')
    }
  })

  test('fails where the store has a bug', async () => {
    const events = storeWith(async () => {
      throw new TypeError('a bug')
    })
    await assert.rejects(open({ events }).rank(bare, { useStored: true }), TypeError)
  })

  test('ends at its deadline and with its client while the store says nothing', async () => {
    const { rank } = open({ events: storeWith(never) })
    const options = { useStored: true, deadlineMs: 5 }
    await assert.rejects(rank(bare, options), { code: 'DEADLINE_EXCEEDED' })
    const { scored, items } = await rank(bare, { ...options, partial: true })
    assert.deepEqual([scored, items], [0, []])
    const client = new AbortController()
    const ranking = rank(bare, { useStored: true, signal: client.signal })
    client.abort()
    await assert.rejects(ranking, { code: 'CANCELLED' })
  })

  test('drops actions that this version of the model does not have, with a warning', async () => {
    const known = click('3', 5)
    const events = storeWith(async () => {
      return { events: [{ ...known, actions: ['click', 'gone', 'gone too'] }], older: 0 }
    })
    const { rank } = open({ events })
    const { items, warnings } = await rank(bare, { useStored: true })
    assert.deepEqual(items, (await rank({ ...bare, histories: [[known]] }, {})).items)
    const [first, second] = warnings.filter(({ code }) => code === 'UNKNOWN_ACTION')
    assert.match(
      `${first?.message}, ${second?.message}`,
      /no action "gone",.* no action "gone too"/,
    )
    await assert.rejects(
      rank({ ...bare, histories: [[{ ...known, actions: ['gone'] }]] }, { useStored: true }),
      { code: 'INVALID_REQUEST', path: '/histories/0/0/actions/0' },
    )
  })
})

describe('appendEvents', () => {
  test('refuses an action that the model does not have, and stores nothing', async () => {
    const { appendEvents, eventsOf } = open()
    const bad = { item: '2', time: 6, actions: ['like', 'lik'] }
    await assert.rejects(appendEvents('u', [click('1', 5), bad]), {
      code: 'INVALID_REQUEST',
      path: '/events/1/actions/1',
      message: /^unknown action "lik": expected one of click, like, share/,
    })
    assert.deepEqual(await eventsOf('u'), [])
  })
})

describe('prefetch', () => {
  test('makes the K/V that the next ranking finds, of stored events or of given ones', async () => {
    const { rank, prefetch, appendEvents, eventsOf, kvOf, prefills } = open()
    await appendEvents('u', history)
    const { kv } = await prefetch(bare, { useStored: true })
    const { state, prefilledTokens } = await kv
    assert.equal(state, 'miss')
    assert.deepEqual(await kvOf('u'), { memory: prefilledTokens })
    assert.equal((await rank(bare, { useStored: true })).kv.state, 'hit')
    const again = await prefetch(bare, { useStored: true })
    assert.deepEqual(await again.kv, {
      state: 'hit',
      tier: 1,
      reusedTokens: prefilledTokens,
      prefilledTokens: 0,
    })
    const given = { ...bare, histories: [[...(await eventsOf('u')), click('4', 2e9)]] }
    assert.equal((await (await prefetch(given, {})).kv).state, 'stale')
    assert.equal((await rank(given, {})).kv.state, 'hit')
    assert.equal(prefills(), 2)
  })

  test('is joined by rankings that come while it runs: one prefill', async () => {
    const { rank, prefetch, appendEvents, prefills, hold } = open()
    await appendEvents('u', history)
    const release = hold()
    const { kv } = await prefetch(bare, { useStored: true })
    const rankings = [rank(bare, { useStored: true }), rank(bare, { useStored: true })]
    release()
    assert.equal((await kv).state, 'miss')
    for (const { kv: use } of await Promise.all(rankings)) assert.equal(use.state, 'hit')
    assert.equal(prefills(), 1)
  })

  test('makes nothing that no ranking would look for', async () => {
    const none = { state: 'none', reusedTokens: 0, prefilledTokens: 0 }
    const { prefetch, prefills } = open()
    assert.deepEqual(await (await prefetch(bare, { useStored: true })).kv, none)
    assert.equal(prefills(), 0)
    const calibration = { prefill: [], score: [], rank: [] }
    const policy = { kv: 'auto', keepsKv: false, maxTokens: 64 } as const
    const onePass = open({ costs: createCosts(calibration, policy) })
    const result = await onePass.prefetch({ ...bare, histories: [history] }, {})
    assert.deepEqual(await result.kv, none)
  })

  test('says what is wrong with the request before anything is under way', async () => {
    const { prefetch } = open()
    const bad = { ...bare, histories: [[{ item: '1', time: 5, actions: ['lik'] }]] }
    await assert.rejects(prefetch(bad, {}), { path: '/histories/0/0/actions/0' })
    const { warnings } = await open({ events: broken }).prefetch(bare, { useStored: true })
    assert.equal(warnings[0]?.code, 'HISTORY_UNAVAILABLE')
  })
})

describe('forget', () => {
  test('takes the stored history and the K/V, of this user alone', async () => {
    const { rank, appendEvents, forget, eventsOf, kvOf, stats } = open()
    for (const user of ['u', 'v']) {
      await appendEvents(user, history)
      await rank({ ...bare, user: { ...bare.user, id: user } }, { useStored: true })
    }
    await forget('u')
    assert.deepEqual(await eventsOf('u'), [])
    assert.deepEqual(await kvOf('u'), { memory: 0 })
    assert.equal((await eventsOf('v')).length, history.length)
    assert.ok((await kvOf('v')).memory > 0)
    assert.equal(stats().cache.entries, 1)
    await forget('nobody')
  })

  test('while a ranking of that user runs: it is answered, and leaves nothing behind', async () => {
    const { rank, prefetch, appendEvents, forget, kvOf, hold } = open()
    await appendEvents('u', history)
    const expected = await rank({ ...bare, histories: [await open().eventsOf('u')] }, {})
    const release = hold()
    const ranking = rank(bare, { useStored: true })
    const prefetching = await prefetch(bare, { useStored: true })
    await forget('u')
    release()
    const { items, warnings } = await ranking
    assert.equal(items.length, expected.items.length)
    assert.deepEqual(
      warnings.filter(({ code }) => code === 'HISTORY_UNAVAILABLE'),
      [],
    )
    await prefetching.kv
    assert.deepEqual(await kvOf('u'), { memory: 0 })
  })

  test('between the reading of a history and its prefill: no K/V of it is kept', async () => {
    const events = createMemoryEvents(DEFAULT_EVENT_LIMITS)
    const read = deferred<void>()
    const { rank, appendEvents, forget, kvOf, prefills } = open({
      events: {
        ...events,
        async get(...args) {
          const found = await events.get(...args)
          await read.promise
          return found
        },
      },
    })
    await appendEvents('u', history)
    const ranking = rank(bare, { useStored: true })
    await forget('u')
    read.resolve()
    assert.equal((await ranking).kv.state, 'miss')
    assert.equal(prefills(), 1, 'of the history that was read')
    assert.deepEqual(await kvOf('u'), { memory: 0 })
  })

  test('fails when the store is away, and takes nothing then', async () => {
    const events = createMemoryEvents(DEFAULT_EVENT_LIMITS)
    const { rank, forget, kvOf } = open({
      events: {
        ...events,
        async forget() {
          throw new RankError('STORE_UNAVAILABLE', 'no connection')
        },
      },
    })
    await rank(request(5), {})
    const before = await kvOf('u')
    await assert.rejects(forget('u'), { code: 'STORE_UNAVAILABLE' })
    assert.deepEqual(await kvOf('u'), before)
  })
})

/** A ranker as one of several on one Redis. */
function replica(t: TestContext, server: RedisServer) {
  const connect = (role: string) =>
    connectRedis(parseRedisUrl(server.url), { role, commandTimeoutMs: 2000, random: () => 0 })
  const client = connect('events')
  const opened = open({
    events: createRedisEvents(client, DEFAULT_EVENT_LIMITS),
    openForgets: (on) =>
      createForgets({ client, listener: connect('forgets'), blockMs: 100, ...on }),
  })
  t.after(() => opened.close())
  return opened
}

describe('several replicas on one Redis', { skip: NO_REDIS }, () => {
  test('share histories, and forget a user everywhere, also with connections cut meanwhile', async (t) => {
    const server = await startRedis(t)
    const [one, two] = [replica(t, server), replica(t, server)]
    const ready = ({ stats }: typeof one) => stats().forgets?.gaps === 1
    await until('both', async () => ready(one) && ready(two) && (await one.eventsOf('u')) !== null)
    await until('the other', async () => (await two.eventsOf('u')).length === 0)

    for (const round of ['connected', 'cut']) {
      await one.appendEvents('u', history)
      await one.appendEvents('other', history)
      for (const { rank } of [one, two]) {
        await rank(bare, { useStored: true })
        await rank({ ...bare, user: { ...bare.user, id: 'other' } }, { useStored: true })
      }
      assert.ok((await two.kvOf('u')).memory > 0, round)
      if (round === 'cut') {
        const list = await server.cli('client', 'list')
        const ids = [...list.matchAll(/^id=(\d+) .*name=peregrine:forgets /gm)].map(([, id]) => id)
        assert.equal(ids.length, 2)
        for (const id of ids) await server.cli('client', 'kill', 'id', id ?? '')
      }
      await one.forget('u')
      assert.deepEqual(await one.kvOf('u'), { memory: 0 })
      await until(`the other, ${round}`, async () => (await two.kvOf('u')).memory === 0)
      assert.deepEqual(await two.eventsOf('u'), [])
      assert.ok((await two.kvOf('other')).memory > 0, 'one user is not all users')
    }
    assert.equal(two.stats().forgets?.gaps, 1)

    await one.appendEvents('u', history)
    await two.rank(bare, { useStored: true })
    await server.cli('flushall')
    await until('all K/V to go', async () => (await two.kvOf('u')).memory === 0)
  })

  test('no id of a user is in Redis, only hashes', async (t) => {
    const server = await startRedis(t)
    const one = replica(t, server)
    const id = 'alice@example.com'
    await until('the connection', async () => {
      await one.appendEvents(id, history, 'a key of alice')
      return true
    })
    await one.rank({ ...bare, user: { id } }, { useStored: true })
    assert.equal(await server.cli('zcard', eventsKey(userHash(id))), String(history.length))
    await one.forget(id)
    const keys = (await server.cli('keys', '*')).split('\n')
    const dumps = [
      await server.cli('xrange', 'peregrine:forgets', '-', '+'),
      ...(await Promise.all(
        keys.filter((key) => key.includes('append')).map((key) => server.cli('get', key)),
      )),
    ]
    assert.equal(keys.length, 2)
    assert.doesNotMatch([...keys, ...dumps].join('\n'), /alice/)
  })

  test('a Redis that is killed, silent or full never fails a ranking', async (t) => {
    const server = await startRedis(t)
    const one = replica(t, server)
    await until('the connection', async () => {
      await one.appendEvents('u', history)
      return true
    })
    const codes = async () => {
      const { warnings } = await one.rank(bare, { useStored: true })
      return warnings.map(({ code }) => code).filter((code) => code === 'HISTORY_UNAVAILABLE')
    }
    assert.deepEqual(await codes(), [])
    server.pause()
    assert.deepEqual(await codes(), ['HISTORY_UNAVAILABLE'])
    await assert.rejects(one.appendEvents('u', history), { code: 'STORE_UNAVAILABLE' })
    await assert.rejects(one.forget('u'), { code: 'STORE_UNAVAILABLE' })
    server.resume()
    await until('the answers', async () => (await codes()).length === 0)
    await server.cli('config', 'set', 'maxmemory', '1')
    assert.deepEqual(await codes(), [])
    await assert.rejects(one.appendEvents('u', [click('1', 1)]), { message: /OOM/ })
    await server.kill()
    await until('the loss', async () => (await codes()).length === 1)
    await assert.rejects(one.eventsOf('u'), { code: 'STORE_UNAVAILABLE' })
    await server.restart()
    await until('the connection', async () => (await codes()).length === 0)
  })
})
