// Redis fails in every way that it can while requests run: each answer is right, and none fails.
import assert from 'node:assert/strict'
import { after, before, describe, type TestContext, test } from 'node:test'
import { kvKey, kvVariant, type UserHash, userHash } from '../cache/key.js'
import { checksumSeed, encodeHead } from '../cache/page.js'
import { connectRedis, type RedisClient } from '../cache/redis.js'
import { parseRedisUrl } from '../cache/redis-url.js'
import { KV_CODECS } from '../model/engine/codec/graphs.js'
import { createRandom } from '../model/random.js'
import {
  createLoad,
  createOracle,
  type Load,
  type Oracle,
  openReplica,
  type Replica,
  type ReplicaOptions,
} from './fault-load.js'
import { exportModel, type ModelFixture, type Scope, smallConfig } from './fixtures.js'
import { MUTATE_ENTRIES } from './mutate-entries.js'
import { startProxy } from './proxy.js'
import { NO_REDIS, type RedisServer, startCluster, startRedis, until } from './redis.js'

const SEED = 31
/** Tests side by side: most of them wait for a pause to end. */
const AT_ONCE = 4
/** Answers before a fault, during each of its steps, and after it. */
const SOME = 60
const APPENDS = 600
const MUTATIONS = 10_000
const MUTATIONS_AT_ONCE = 25

const SWAP = `
if redis.call('EXISTS', KEYS[1], KEYS[2]) < 2 then return end
redis.call('RENAME', KEYS[1], 'swap')
redis.call('RENAME', KEYS[2], KEYS[1])
redis.call('RENAME', 'swap', KEYS[2])`

type Hostile = {
  readonly name: string
  plant(client: RedisClient, version: string, user: UserHash): Promise<unknown>
}

const HOSTILE: readonly Hostile[] = [
  {
    name: 'a string where an entry should be',
    async plant(client, version, user) {
      await client.set(kvKey(kvVariant(version, 'fp32'), user), 'not a hash')
    },
  },
  {
    name: 'a list where an entry should be',
    async plant(client, version, user) {
      await client.unlink(kvKey(kvVariant(version, 'fp32'), user))
      await client.rpush(kvKey(kvVariant(version, 'fp32'), user), 'not a hash')
    },
  },
  {
    name: 'a head of 100 MB',
    plant: (client, version, user) =>
      client.hset(kvKey(kvVariant(version, 'fp32'), user), { head: Buffer.alloc(1e8, 'PKV2') }),
  },
  {
    name: 'a page of 100 MB',
    async plant(client, version, user) {
      const key = kvKey(kvVariant(version, 'fp32'), user)
      const page = (await client.hkeys(key)).find((field) => field !== 'head') ?? 'none'
      await client.hset(key, { [page]: Buffer.alloc(1e8) })
    },
  },
  {
    name: 'a head of 2^26 tokens with a checksum that is right',
    plant(client, version, user) {
      const digest = Buffer.alloc(32, 7).toString('base64')
      const tokens = 2 ** 26
      const chain = { tokens, pages: new Array<string>(tokens / 64).fill(digest), whole: digest }
      const shape = { codec: 'fp32', layers: 2, kWidth: 12, vWidth: 8, maxTokens: tokens } as const
      const head = encodeHead(shape, chain, Buffer.alloc(16), checksumSeed(version, user))
      return client.hset(kvKey(kvVariant(version, 'fp32'), user), { head })
    },
  },
]

type Fault = {
  readonly name: string
  inject(server: RedisServer, further: (count: number) => Promise<void>): Promise<void>
  /** What it must have done to the replica, so that no fault passes unnoticed. */
  felt(replica: Replica): boolean
}

const missed = ({ tier2 }: Replica) => {
  const { lookups } = tier2.stats()
  return lookups.error + lookups.timeout + lookups.open > 0
}
const notWritten = ({ tier2 }: Replica) => tier2.stats().writes.error > 0

const FAULTS: readonly Fault[] = [
  {
    name: 'is killed, and comes back empty',
    async inject(server, further) {
      await server.kill()
      await further(SOME)
      await server.restart()
    },
    felt: missed,
  },
  {
    name: 'is restarted empty between two requests',
    inject: (server) => server.restart(),
    felt: ({ events }) => events.includes('redisLost'),
  },
  {
    name: 'is paused',
    async inject(server, further) {
      server.pause()
      await further(SOME)
      server.resume()
    },
    felt: missed,
  },
  {
    name: 'has no memory left',
    async inject(server, further) {
      await server.cli('config', 'set', 'maxmemory', '1')
      await further(SOME)
      await server.cli('config', 'set', 'maxmemory', '0')
    },
    felt: notWritten,
  },
  {
    name: 'is flushed, time and again',
    async inject(server, further) {
      for (let i = 0; i < 20; i++) {
        await server.cli('flushall')
        await further(3)
      }
    },
    felt: ({ tier2 }) => tier2.stats().lookups.absent > 6,
  },
  {
    name: 'has another password from now on',
    async inject(server, further) {
      await server.cli('acl', 'setuser', 'default', 'resetpass', '>other')
      await server.cli('-a', 'other', '--no-auth-warning', 'client', 'kill', 'type', 'normal')
      await further(SOME)
      await server.cli('-a', 'other', '--no-auth-warning', 'acl', 'setuser', 'default', 'nopass')
    },
    felt: missed,
  },
  {
    name: 'lets its user read only',
    async inject(server, further) {
      await server.cli('acl', 'setuser', 'default', '-@write', '-@scripting')
      await further(SOME)
      await server.cli('acl', 'setuser', 'default', '+@all')
    },
    felt: notWritten,
  },
]

describe('ranking while Redis', { skip: NO_REDIS, concurrency: AT_ONCE }, () => {
  const model = largerModel({ after }, 7)
  const other = largerModel({ after }, 8)
  let oracle: Oracle
  let oracleOfOther: Oracle
  before(async () => {
    oracle = await createOracle(model)
    oracleOfOther = await createOracle(other)
  })
  after(() => Promise.all([oracle.close(), oracleOfOther.close()]))

  const open = async (t: TestContext, options: ReplicaOptions = {}) => {
    const server = await startRedis(t)
    const replica = await openReplica(t, model, server.url, options)
    return { server, replica, load: createLoad(oracle, SEED) }
  }
  /** A fault in the middle of a load: nobody notices, and afterwards K/V is found in Redis again. */
  const endure = async (
    load: Load,
    replica: Replica,
    inject: (further: (count: number) => Promise<void>) => Promise<void>,
  ) => {
    await load.untilHits(replica)
    await load.during([replica], async (further) => {
      await further(SOME)
      await inject(further)
      await further(SOME)
    })
    await load.untilHits(replica)
    await replica.close()
  }

  for (const { name, inject, felt } of FAULTS) {
    test(name, async (t) => {
      const { server, replica, load } = await open(t)
      await endure(load, replica, (further) => inject(server, further))
      assert.ok(felt(replica), `nothing was felt: ${JSON.stringify(replica.tier2.stats())}`)
    })
  }

  test('is killed, and comes back empty, with engine node', async (t) => {
    const { server, replica, load } = await open(t, { engine: 'node' })
    await endure(load, replica, async (further) => {
      await server.kill()
      await further(SOME)
      await server.restart()
    })
    assert.ok(missed(replica))
  })

  test('is slow', async (t) => {
    const server = await startRedis(t)
    const proxy = await startProxy(t, server.port)
    const replica = await openReplica(t, model, `redis://127.0.0.1:${proxy.port}`)
    await endure(createLoad(oracle, SEED), replica, async (further) => {
      proxy.setDelay(100)
      await further(SOME)
      proxy.setDelay(0)
    })
    assert.ok(missed(replica))
  })

  test('cuts its connections in the middle of answers', async (t) => {
    const server = await startRedis(t)
    const proxy = await startProxy(t, server.port)
    const replica = await openReplica(t, model, `redis://127.0.0.1:${proxy.port}`)
    await endure(createLoad(oracle, SEED), replica, async (further) => {
      for (let i = 0; i < 10; i++) {
        proxy.cutAtNextAnswer()
        await further(10)
      }
    })
    assert.ok(replica.events.includes('redisLost'))
  })

  test('loses one master of its cluster', async (t) => {
    const { nodes, url } = await startCluster(t)
    const replica = await openReplica(t, model, url)
    await endure(createLoad(oracle, SEED), replica, async (further) => {
      await nodes[1]?.kill()
      await further(4 * SOME)
      await nodes[1]?.restart()
    })
    assert.ok(missed(replica))
  })

  test('has bytes of its entries changed at random', async (t) => {
    const { server, replica, load } = await open(t)
    const client = await secondClient(t, server)
    await endure(load, replica, async (further) => {
      for (let i = 0; i < MUTATIONS / MUTATIONS_AT_ONCE; i++) {
        await client.eval(MUTATE_ENTRIES, 0, SEED + i, MUTATIONS_AT_ONCE)
        await further(1)
      }
    })
    assert.ok(replica.tier2.stats().lookups.corrupt > 100)
  })

  test('has entries swapped between users and between models', async (t) => {
    const { server, replica, load } = await open(t)
    const ofOther = await openReplica(t, other, server.url)
    const loadOfOther = createLoad(oracleOfOther, SEED)
    const client = await secondClient(t, server)
    const versions = [model, other].map(({ bundle }) => bundle.manifest.version)
    const keys = load
      .requests()
      .flatMap(({ user }) =>
        versions.map((version) => kvKey(kvVariant(version, 'fp32'), userHash(user.id))),
      )
    const random = createRandom(SEED)
    await loadOfOther.untilHits(ofOther)
    await loadOfOther.during([ofOther], () =>
      endure(load, replica, async (further) => {
        for (let i = 0; i < 60; i++) {
          const [a = '', b = ''] = keys.toSorted(() => random() - 0.5)
          await client.eval(SWAP, 2, a, b)
          await further(2)
        }
      }),
    )
    // How many depends on who rewrites an entry before it is read.
    assert.ok(replica.tier2.stats().lookups.corrupt > 0)
    await loadOfOther.untilHits(ofOther)
    await ofOther.close()
  })

  test("kills tier 2's own thread, as it were", async (t) => {
    const { replica, load } = await open(t)
    await endure(load, replica, async (further) => {
      for (let i = 0; i < 2; i++) {
        await until('a thread', () => replica.tier2.thread() !== undefined)
        await replica.tier2.thread()?.terminate()
        await further(SOME)
      }
    })
    assert.equal(replica.events.filter((kind) => kind === 'redisThreadCrash').length, 2)
  })

  test('holds entries of every codec beside each other, and swapped with each other', async (t) => {
    const { server, replica, load } = await open(t)
    const others = await Promise.all(
      (['fp16', 'int8'] as const).map((codec) => openReplica(t, model, server.url, { codec })),
    )
    const all = [replica, ...others]
    const corrupt = () => all.map(({ tier2 }) => tier2.stats().lookups.corrupt)
    for (const one of all) await load.untilHits(one)
    await load.during(all, (further) => further(10 * SOME))
    assert.deepEqual(corrupt(), [0, 0, 0], 'none is in the way of another')
    const client = await secondClient(t, server)
    const { version } = model.bundle.manifest
    const random = createRandom(SEED)
    await load.during(all, async (further) => {
      for (let i = 0; i < 60; i++) {
        for (const { user } of load.requests()) {
          const keys = KV_CODECS.map((codec) => kvKey(kvVariant(version, codec), userHash(user.id)))
          const [a = '', b = ''] = keys.toSorted(() => random() - 0.5)
          await client.eval(SWAP, 2, a, b)
        }
        await further(2)
      }
    })
    assert.ok(Math.max(...corrupt()) > 0, `${corrupt()}`)
    for (const one of others) await one.close()
    await load.untilHits(replica)
    await replica.close()
  })

  for (const { name, plant } of HOSTILE) {
    test(`holds ${name}`, async (t) => {
      const { server, replica, load } = await open(t)
      const client = await secondClient(t, server)
      const { version } = model.bundle.manifest
      await endure(load, replica, async (further) => {
        for (const { user } of load.requests().slice(0, 1)) {
          await plant(client, version, userHash(user.id))
          await further(SOME)
        }
      })
    })
  }
})

describe('replicas that share Redis', { skip: NO_REDIS, concurrency: AT_ONCE }, () => {
  const model = largerModel({ after }, 7)
  let oracle: Oracle
  before(async () => {
    oracle = await createOracle(model)
  })
  after(() => oracle.close())

  for (const codec of KV_CODECS) {
    test(`append for the same users at the same time, codec ${codec}`, async (t) => {
      const { url } = await startRedis(t)
      // One keeps K/V in memory too, and so appends to what Redis no longer has.
      const replicas = [
        await openReplica(t, model, url, { codec }),
        await openReplica(t, model, url, { codec, maxKvBytes: 1e8 }),
      ]
      const load = createLoad(oracle, SEED)
      await load.during(replicas, (further) => further(APPENDS))
      const third = await openReplica(t, model, url, { codec })
      await load.untilHits(third)
      t.diagnostic(`${codec}: largest difference ${load.worst()}`)
      const conflicts = replicas.map(({ tier2 }) => tier2.stats().writes)
      assert.ok(
        conflicts.some(({ conflict }) => conflict > 0),
        'they never met',
      )
      assert.deepEqual(
        [...replicas, third].map(({ tier2 }) => tier2.stats().lookups.corrupt),
        [0, 0, 0],
        'an entry was mixed',
      )
      for (const replica of [...replicas, third]) await replica.close()
    })
  }

  test('serve what another wrote, and so does one that starts anew', async (t) => {
    const { url } = await startRedis(t)
    const load = createLoad(oracle, SEED)
    const first = await openReplica(t, model, url)
    const second = await openReplica(t, model, url)
    for (const input of load.requests()) {
      assert.equal((await load.check(first, input)).kv.state, 'miss')
      await first.written()
    }
    await first.close()
    const later = await openReplica(t, model, url)
    for (const replica of [second, later]) {
      for (const input of load.requests()) {
        const { kv, historyTokens } = await load.check(replica, input)
        const { state, tier, reusedTokens, prefilledTokens } = kv
        assert.deepEqual([state, tier, reusedTokens, prefilledTokens], ['hit', 2, historyTokens, 0])
      }
      await replica.close()
    }
  })
})

/** Histories of one to three pages. */
function largerModel(scope: Scope, seed: number): ModelFixture {
  return exportModel(scope, { seed, config: smallConfig({ maxTokens: 200, positions: 150 }) })
}

async function secondClient(t: TestContext, { url }: RedisServer): Promise<RedisClient> {
  const client = connectRedis(parseRedisUrl(url), { role: 'test', commandTimeoutMs: 20_000 })
  t.after(() => client.disconnect())
  await until('the second client', () => client.status === 'ready')
  return client
}
