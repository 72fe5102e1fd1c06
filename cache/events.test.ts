import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { createRandom } from '../model/random.js'
import type { HistoryEvent } from '../model/request.js'
import { NO_REDIS, startCluster, startRedis, until } from '../test/redis.js'
import {
  type Appended,
  canonicalText,
  compareEvents,
  type EventLimits,
  type EventStore,
  excessOf,
  toBatch,
} from './events.js'
import { createMemoryEvents } from './events-memory.js'
import { createRedisEvents } from './events-redis.js'
import { type UserHash, userHash } from './key.js'
import { connectRedis } from './redis.js'
import { parseRedisUrl } from './redis-url.js'

const LIMITS: EventLimits = { maxStoredEvents: 20, slack: 4, ttlSec: 1000 }

type Scope = { after(clean: () => unknown): void }
type Open = (scope: Scope, limits: EventLimits) => Promise<EventStore>

const KINDS: readonly (readonly [kind: string, needsRedis: boolean, open: Open])[] = [
  ['memory', false, async (_, limits) => createMemoryEvents({ ...limits, maxBytes: 1e9 })],
  ['a Redis server', true, async (scope, limits) => onRedis((await startRedis(scope)).url, limits)],
  [
    'a Redis cluster',
    true,
    async (scope, limits) => onRedis((await startCluster(scope)).url, limits),
  ],
]

async function onRedis(url: string, limits: EventLimits): Promise<EventStore> {
  const client = connectRedis(parseRedisUrl(url), { role: 'test', commandTimeoutMs: 5000 })
  const store = createRedisEvents(client, limits)
  await until('every node', async () => {
    await Promise.all(Array.from({ length: 50 }, (_, i) => store.get(userHash(`probe ${i}`))))
    return true
  })
  return store
}

const [alice, bob] = [userHash('alice'), userHash('bob')]
const event = (time: number, item = `i${time}`): HistoryEvent => ({
  time,
  item,
  actions: ['click'],
})
const timesOf = (events: readonly HistoryEvent[]) => events.map(({ time }) => time)
const range = (first: number, last: number) =>
  Array.from({ length: last - first + 1 }, (_, i) => event(first + i))

for (const [kind, needsRedis, open] of KINDS) {
  describe(`stored histories in ${kind}`, { skip: needsRedis && NO_REDIS }, () => {
    const cleaners: (() => unknown)[] = []
    let store: EventStore
    before(async () => {
      store = await open({ after: (clean) => cleaners.push(clean) }, LIMITS)
    })
    after(async () => {
      store.close()
      for (const clean of cleaners) await clean()
    })
    const eventsOf = async (user: UserHash) => {
      const { events, older } = await store.get(user)
      assert.equal(older, 0, 'all of them')
      return events
    }
    const fresh = async (...users: (typeof alice)[]) => {
      for (const user of users) await store.forget(user)
    }

    test('a user that nobody knows has no events', async () => {
      assert.deepEqual(await eventsOf(userHash('nobody')), [])
      await store.forget(userHash('nobody'))
    })

    test('come back sorted by time, however they came, each once', async () => {
      await fresh(alice, bob)
      const first = await store.append(alice, [event(30), event(10), event(30)])
      assert.deepEqual(first, { stored: 2, duplicates: 1, total: 2, trimmed: 0 })
      const second = await store.append(alice, [event(20), event(10)])
      assert.deepEqual(second, { stored: 1, duplicates: 1, total: 3, trimmed: 0 })
      assert.deepEqual(await eventsOf(alice), [event(10), event(20), event(30)])
      assert.deepEqual(await eventsOf(bob), [])
    })

    test('are the same event when only the order of actions and names differs', async () => {
      await fresh(alice)
      const features = { tab: 1, a: 'x' }
      const forms: HistoryEvent[] = [
        { time: 5, item: 'i', actions: ['like', 'click'], features },
        { time: 5, item: 'i', actions: ['click', 'like', 'click'], features: { a: 'x', tab: 1 } },
        { time: 5, item: 'i', features: { tab: 1, a: 'x' }, actions: ['click', 'like'] },
      ]
      for (const form of forms) await store.append(alice, [form])
      assert.deepEqual(await eventsOf(alice), [
        { time: 5, item: 'i', actions: ['click', 'like'], features: { a: 'x', tab: 1 } },
      ])
    })

    test('are other events when an action, its absence, a feature or its type differs', async () => {
      await fresh(alice)
      const forms: HistoryEvent[] = [
        { time: 5, item: 'i' },
        { time: 5, item: 'i', actions: [] },
        { time: 5, item: 'i', actions: ['click'] },
        { time: 5, item: 'i', features: { a: 1 } },
        { time: 5, item: 'i', features: { a: '1' } },
        { time: 5, item: 'j' },
        { time: 6, item: 'i' },
      ]
      assert.equal((await store.append(alice, forms)).stored, forms.length)
      assert.equal((await eventsOf(alice)).length, forms.length)
    })

    test('have one order at equal times, whatever the arrival: that of their text’s bytes', async () => {
      const items = ['b', 'a', '~', 'é', '\uffff', '😀', '\ud800', '"', '\n', 'a b']
      const orders = [items, items.toReversed(), items.toSorted()]
      const got: string[][] = []
      for (const order of orders) {
        await fresh(alice)
        for (const item of order) await store.append(alice, [event(7, item)])
        got.push((await eventsOf(alice)).map(({ item }) => item))
      }
      const byBytes = items
        .map((item) => canonicalText(event(7, item)))
        .toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
      assert.deepEqual(
        got[0],
        byBytes.map((text) => JSON.parse(text).item),
      )
      assert.deepEqual(got[1], got[0])
      assert.deepEqual(got[2], got[0])
    })

    test('lose their oldest in steps of the slack, so that the first one stays put in between', async () => {
      await fresh(alice)
      const firsts: (number | undefined)[] = []
      for (let time = 1; time <= 40; time++) {
        await store.append(alice, [event(time)])
        const events = await eventsOf(alice)
        assert.ok(events.length <= 24, `${time}: ${events.length}`)
        assert.ok(events.length >= Math.min(time, 20), `${time}: ${events.length}`)
        firsts.push(events[0]?.time)
      }
      assert.deepEqual([...new Set(firsts)], [1, 5, 9, 13, 17])
      const answer = await store.append(alice, [event(41)])
      assert.deepEqual(answer, { stored: 1, duplicates: 0, total: 21, trimmed: 4 })
    })

    test('of one append beyond what is kept: the newest stay', async () => {
      await fresh(alice)
      const answer = await store.append(alice, range(1, 100))
      assert.deepEqual(answer, { stored: 24, duplicates: 0, total: 24, trimmed: 76 })
      assert.deepEqual(timesOf(await eventsOf(alice)), timesOf(range(77, 100)))
    })

    test('are read from the newest on, and say how many were not', async () => {
      await fresh(alice)
      await store.append(alice, range(1, 10))
      for (let newest = 1; newest <= 12; newest++) {
        const { events, older } = await store.get(alice, newest)
        assert.deepEqual(timesOf(events), timesOf(range(Math.max(1, 11 - newest), 10)))
        assert.equal(older, Math.max(0, 10 - newest))
      }
      assert.deepEqual(await store.get(bob, 5), { events: [], older: 0 })
    })

    test('an idempotency key gets the first answer again and adds nothing, also after a forget', async () => {
      await fresh(alice, bob)
      const key = `key of ${kind}`
      const first = await store.append(alice, range(1, 3), key)
      assert.deepEqual(first, { stored: 3, duplicates: 0, total: 3, trimmed: 0 })
      await store.append(alice, [event(4)])
      assert.deepEqual(await store.append(alice, range(1, 3), key), first)
      await store.forget(alice)
      assert.deepEqual(await store.append(alice, range(1, 3), key), first)
      assert.deepEqual(await eventsOf(alice), [])
      assert.equal((await store.append(bob, range(1, 2), key)).stored, 2, 'keys are a user’s own')
      await assert.rejects(store.append(alice, range(1, 2), key), {
        code: 'INVALID_REQUEST',
        path: '/idempotencyKey',
      })
    })

    test('appends that race lose nothing and double nothing', async () => {
      await fresh(alice)
      const answers = await Promise.all(
        Array.from({ length: 8 }, async (_, i) => {
          let stored = 0
          for (let time = 1; time <= 20; time += 2) {
            // Each event comes from four of them.
            const two = [event(time + (i % 2)), event(time + ((i + (time % 2)) % 2))]
            stored += (await store.append(alice, two)).stored
          }
          return stored
        }),
      )
      assert.deepEqual(timesOf(await eventsOf(alice)), timesOf(range(1, 20)))
      assert.equal(
        answers.reduce((sum, stored) => sum + stored),
        20,
      )
    })

    test('do what a plain sorted list does, in random use', async () => {
      for (let seed = 1; seed <= 6; seed++) {
        const random = createRandom(seed)
        const below = (limit: number) => Math.floor(random() * limit)
        const users = ['x', 'y'].map((name) => userHash(`${name} ${seed} ${kind}`))
        const model = createModel(LIMITS)
        const randomEvent = (): HistoryEvent => ({
          time: below(30),
          item: `i${below(3)}`,
          ...(below(3) > 0 && { actions: ['like', 'click'].slice(below(3)) }),
          ...(below(4) === 0 && { features: { tab: below(2) } }),
        })
        for (let step = 0; step < 120; step++) {
          const what = `seed ${seed}, step ${step}`
          const user = users[below(2)] ?? alice
          if (below(12) === 0) {
            await store.forget(user)
            model.forget(user)
          } else {
            const events = Array.from({ length: 1 + below(step % 10 === 0 ? 60 : 4) }, randomEvent)
            const key = below(4) === 0 ? `${seed} ${step % 3}` : undefined
            const expected = model.append(user, events, key)
            const got = store.append(user, events, key)
            if (expected === 'refused') await assert.rejects(got, { code: 'INVALID_REQUEST' }, what)
            else assert.deepEqual(await got, expected, what)
          }
          const got = (await eventsOf(user)).map(canonicalText)
          assert.deepEqual(got, model.get(user), what)
        }
      }
    })
  })
}

/** The same, as slow and plain as can be. */
function createModel(limits: EventLimits) {
  const users = new Map<string, { time: number; text: string }[]>()
  const answers = new Map<string, { posted: string; answer: Appended }>()
  const sorted = (texts: Iterable<string>) =>
    [...new Set(texts)].map((text) => ({ time: JSON.parse(text).time, text })).sort(compareEvents)
  return {
    append(user: string, events: readonly HistoryEvent[], key?: string): Appended | 'refused' {
      const texts = events.map(canonicalText)
      const posted = texts.toSorted().join('\n')
      const first = key === undefined ? undefined : answers.get(`${user} ${key}`)
      if (first !== undefined) return first.posted === posted ? first.answer : 'refused'
      const before = users.get(user) ?? []
      const batch = sorted(texts)
      let trimmed = 0
      while (batch.length > limits.maxStoredEvents + limits.slack) {
        batch.shift()
        trimmed++
      }
      const now = sorted([...before, ...batch].map(({ text }) => text))
      const stored = now.length - before.length
      if (now.length > limits.maxStoredEvents + limits.slack) {
        while (now.length - limits.slack >= limits.maxStoredEvents) {
          now.splice(0, limits.slack)
          trimmed += limits.slack
        }
      }
      users.set(user, now)
      const tooOld = new Set(texts).size - batch.length
      const duplicates = events.length - tooOld - stored
      const answer = { stored, duplicates, total: now.length, trimmed }
      if (key !== undefined) answers.set(`${user} ${key}`, { posted, answer })
      return answer
    },
    get: (user: string) => (users.get(user) ?? []).map(({ text }) => text),
    forget: (user: string) => users.delete(user),
  }
}

describe('excessOf', () => {
  test('is the largest multiple of the slack that leaves the maximum, once it is passed by the slack', () => {
    for (let maxStoredEvents = 1; maxStoredEvents <= 12; maxStoredEvents++) {
      for (let slack = 1; slack <= 12; slack++) {
        for (let total = 0; total <= 60; total++) {
          const excess = excessOf(total, { maxStoredEvents, slack, ttlSec: 1 })
          const left = total - excess
          assert.equal(excess % slack, 0)
          assert.ok(left <= maxStoredEvents + slack)
          if (total <= maxStoredEvents + slack) assert.equal(excess, 0)
          else assert.ok(left >= maxStoredEvents && left < maxStoredEvents + slack)
        }
      }
    }
  })
})

describe('toBatch', () => {
  test('has one digest per content, not per order, and another for each other content', () => {
    const digest = (...events: HistoryEvent[]) => toBatch(events, LIMITS).digest
    assert.equal(digest(event(1), event(2)), digest(event(2), event(1)))
    assert.notEqual(digest(event(1), event(2)), digest(event(1)))
    assert.notEqual(digest(event(1), event(1)), digest(event(1)))
    assert.notEqual(
      digest(...range(1, 50)),
      digest(...range(2, 50)),
      'also of events that are too old to stay',
    )
  })
})
