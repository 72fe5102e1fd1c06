import assert from 'node:assert/strict'
import { describe, type TestContext, test } from 'node:test'
import { startProxy } from '../test/proxy.js'
import { NO_REDIS, startCluster, startRedis, until } from '../test/redis.js'
import { createForgets } from './forgets.js'
import { userHash } from './key.js'
import { connectRedis } from './redis.js'
import { parseRedisUrl } from './redis-url.js'

const STREAM = 'peregrine:forgets'
const BLOCK_MS = 100
const [alice, bob] = [userHash('alice'), userHash('bob')]

/** A replica: what it was told, 'everybody' for a gap. */
async function replica(t: TestContext, url: string) {
  const connect = (role: string) =>
    connectRedis(parseRedisUrl(url), { role, commandTimeoutMs: 2000, random: () => 0 })
  const client = connect('client')
  const told: string[] = []
  const forgets = createForgets({
    client,
    listener: connect('forgets'),
    onForget: (user) => told.push(user),
    onGap: () => told.push('everybody'),
    blockMs: BLOCK_MS,
  })
  t.after(async () => {
    client.disconnect()
    await forgets.close()
  })
  await until('the start', () => told.length === 1 && client.status === 'ready')
  return { told, publish: forgets.publish, forgets }
}

const hears = (told: readonly string[], ...expected: string[]) =>
  until(`${expected}, got ${told}`, () => String(told) === String(['everybody', ...expected]))

describe('createForgets', { skip: NO_REDIS }, () => {
  test('every replica hears of every user, its own too, in order and once', async (t) => {
    const { url } = await startRedis(t)
    const [one, two] = [await replica(t, url), await replica(t, url)]
    await one.publish(alice)
    await two.publish(bob)
    await one.publish(alice)
    for (const { told } of [one, two]) await hears(told, alice, bob, alice)
    const late = await replica(t, url)
    await one.publish(bob)
    await hears(late.told, bob)
    assert.deepEqual(late.forgets.stats(), { received: 1, gaps: 1 })
  })

  test('in a cluster too', async (t) => {
    const { url } = await startCluster(t)
    const [one, two] = [await replica(t, url), await replica(t, url)]
    await until('the node of the stream', async () => {
      await one.publish(alice)
      return true
    })
    for (const { told } of [one, two]) await hears(told, alice)
  })

  test('what was published while a connection was away is heard when it is back', async (t) => {
    const server = await startRedis(t)
    const one = await replica(t, server.url)
    const proxy = await startProxy(t, server.port)
    const two = await replica(t, `redis://127.0.0.1:${proxy.port}`)
    proxy.shut()
    for (let i = 0; i < 30; i++) await one.publish(userHash(`u${i}`))
    await hears(one.told, ...Array.from({ length: 30 }, (_, i) => userHash(`u${i}`)))
    assert.deepEqual(two.told, ['everybody'])
    await assert.rejects(two.publish(bob), { code: 'STORE_UNAVAILABLE' })
    proxy.open()
    await hears(two.told, ...Array.from({ length: 30 }, (_, i) => userHash(`u${i}`)))
    const killed = await server.cli('client', 'kill', 'type', 'normal', 'skipme', 'yes')
    assert.ok(Number(killed) >= 4)
    await until('the publisher', async () => {
      await one.publish(bob)
      return true
    })
    await until('bob', () => two.told.at(-1) === bob && one.told.at(-1) === bob)
    assert.equal(two.forgets.stats().gaps, 1)
  })

  test('a stream that was trimmed behind a replica’s back is a gap: everybody is forgotten', async (t) => {
    const server = await startRedis(t)
    const one = await replica(t, server.url)
    const proxy = await startProxy(t, server.port)
    const two = await replica(t, `redis://127.0.0.1:${proxy.port}`)
    proxy.shut()
    await one.publish(alice)
    await one.publish(bob)
    await hears(one.told, alice, bob)
    await server.cli('xtrim', STREAM, 'MAXLEN', '=', '1')
    proxy.open()
    await hears(two.told, 'everybody')
    await one.publish(alice)
    await hears(two.told, 'everybody', alice)
    await hears(one.told, alice, bob, alice)
  })

  test('a flushed or restarted Redis is a gap for all, also when nobody is forgotten after', async (t) => {
    const server = await startRedis(t)
    const replicas = [await replica(t, server.url), await replica(t, server.url)]
    await server.cli('flushall')
    for (const { told } of replicas) await hears(told, 'everybody')
    await server.restart()
    for (const { told } of replicas) await hears(told, 'everybody', 'everybody')
    await until('the publisher', async () => {
      await replicas[0]?.publish(alice)
      return true
    })
    for (const { told } of replicas) await hears(told, 'everybody', 'everybody', alice)
  })

  test('the stream stays capped', async (t) => {
    const server = await startRedis(t)
    const one = await replica(t, server.url)
    for (let batch = 0; batch < 12; batch++) {
      await Promise.all(
        Array.from({ length: 1000 }, (_, i) => one.publish(userHash(`${batch} ${i}`))),
      )
    }
    const length = Number(await server.cli('xlen', STREAM))
    assert.ok(length >= 10_000 && length < 10_200, `${length}`)
    await until('all of them', () => one.told.length === 12_001)
    assert.equal(one.forgets.stats().gaps, 1)
  })
})
