import assert from 'node:assert/strict'
import { describe, type TestContext, test } from 'node:test'
import { startProxy } from '../test/proxy.js'
import {
  makeCertificates,
  NO_REDIS,
  startCluster,
  startRedis,
  startSentinel,
  until,
} from '../test/redis.js'
import { backoffMs, type ConnectOptions, connectRedis, type RedisEvent } from './redis.js'
import { parseRedisUrl } from './redis-url.js'

/** Ample for a busy machine; what a cache would use is far less. */
const AMPLE_MS = 2000

function connectTo(t: TestContext, url: string, options: Partial<ConnectOptions> = {}) {
  const events: RedisEvent[] = []
  const client = connectRedis(parseRedisUrl(url), {
    role: 'test',
    commandTimeoutMs: AMPLE_MS,
    onEvent: (event) => events.push(event),
    random: () => 0,
    ...options,
  })
  t.after(() => client.disconnect())
  const kinds = () => events.map(({ kind }) => kind)
  const answers = () => until(`${url} to answer`, async () => (await client.get('none')) === null)
  return { client, events, kinds, answers }
}

describe('connectRedis', { skip: NO_REDIS }, () => {
  test('connects in the background, under the name of its role', async (t) => {
    const server = await startRedis(t)
    const { client, answers, events } = connectTo(t, `${server.url}/3`)
    await assert.rejects(client.get('x'), 'not connected in the very moment of the call')
    await answers()
    assert.equal(await client.set('x', '1'), 'OK')
    assert.equal(await server.cli('-n', '3', 'get', 'x'), '1')
    assert.match(await server.cli('client', 'list'), /name=peregrine:test /)
    assert.deepEqual(events, [{ kind: 'redisReady', role: 'test' }])
  })

  test('logs in as an ACL user', async (t) => {
    const server = await startRedis(t, {
      config: ['user default off', 'user alice on >s3cret ~peregrine:* +@all'],
      user: 'alice',
      password: 's3cret',
    })
    const url = server.url.replace('//', '//alice:s3cret@')
    const { client } = connectTo(t, url)
    await until('login', async () => (await client.set('peregrine:x', '1')) === 'OK')
    await assert.rejects(client.get('x'), /NOPERM/)
    assert.match(await server.cli('client', 'list'), /user=alice/)
  })

  test('speaks TLS with a client certificate, and does not trust an unknown authority', async (t) => {
    const tls = makeCertificates(t)
    const server = await startRedis(t, { tls })
    const { answers } = connectTo(
      t,
      `${server.url}?ca=${tls.ca}&cert=${tls.cert}&key=${encodeURIComponent(tls.key)}`,
    )
    await answers()
    const stranger = connectTo(t, `${server.url}?cert=${tls.cert}&key=${tls.key}`)
    await until('refusal', () => stranger.events.length > 0)
    const [event] = stranger.events
    assert.ok(event?.kind === 'redisLost')
    assert.match(event.message, /certificate/)
  })

  test('a wrong password is told once, without the password, and tried again until it is right', async (t) => {
    const server = await startRedis(t, { config: ['requirepass other'], password: 'other' })
    const { client, events, kinds, answers } = connectTo(t, server.url.replace('//', '//:s3cret@'))
    await until('three logins', async () => {
      const log = await server.cli('info', 'errorstats')
      return Number(/WRONGPASS:count=(\d+)/.exec(log)?.[1]) >= 3
    })
    await assert.rejects(client.get('x'))
    const [event] = events
    assert.ok(event?.kind === 'redisLost')
    assert.match(event.message, /WRONGPASS/)
    assert.equal(events.length, 1)
    assert.doesNotMatch(JSON.stringify(events), /s3cret/)
    await server.cli('config', 'set', 'requirepass', 's3cret')
    await answers()
    assert.deepEqual(kinds(), ['redisLost', 'redisReady'])
  })

  test('a server that comes later is found, one that goes is told, and found again', async (t) => {
    const server = await startRedis(t)
    await server.kill()
    const { client, events, kinds, answers } = connectTo(t, server.url)
    await until('a refused connection', () => events.length > 0)
    await assert.rejects(client.get('x'), /offline/i)
    await server.restart()
    await answers()
    await server.stop()
    await until('the loss', () => kinds().length === 3)
    await assert.rejects(client.get('x'))
    await server.restart()
    await answers()
    assert.deepEqual(kinds(), ['redisLost', 'redisReady', 'redisLost', 'redisReady'])
    client.disconnect()
    await until('the end', () => client.status === 'end')
    assert.equal(events.length, 4, 'an end that we wanted is no loss')
  })

  test('a silent server costs the timeout first, then nothing, and is used again when it speaks', async (t) => {
    const server = await startRedis(t)
    const { client, answers, kinds } = connectTo(t, server.url, { commandTimeoutMs: 50 })
    await answers()
    server.pause()
    await assert.rejects(client.get('x'), /Command timed out/)
    await until('the connection to be given up', () => kinds().includes('redisLost'))
    await assert.rejects(client.get('x'), /offline/i)
    server.resume()
    await answers()
  })

  test('a timeout shorter than the way to the server lets it connect', async (t) => {
    const server = await startRedis(t)
    const proxy = await startProxy(t, server.port)
    proxy.setDelay(200)
    const url = `redis://127.0.0.1:${proxy.port}`
    const { client, kinds, answers } = connectTo(t, url, { commandTimeoutMs: 150 })
    await until('the greeting', () => kinds().includes('redisReady'))
    await assert.rejects(client.get('x'), /Command timed out/)
    proxy.setDelay(0)
    await answers()
    assert.deepEqual(kinds(), ['redisReady'])
  })

  test('a command whose answer is lost rejects, and is not sent again', async (t) => {
    const server = await startRedis(t)
    const proxy = await startProxy(t, server.port)
    const { client, answers, kinds } = connectTo(t, `redis://127.0.0.1:${proxy.port}`)
    await answers()
    proxy.cutAtNextAnswer()
    await assert.rejects(Promise.all([client.incr('x'), client.incr('x')]))
    await answers()
    assert.equal(await client.get('x'), '2')
    assert.deepEqual(kinds(), ['redisReady', 'redisLost', 'redisReady'])
  })

  test('a master that became a replica is left', async (t) => {
    const server = await startRedis(t)
    const { client, answers, kinds } = connectTo(t, server.url)
    await answers()
    await server.cli('replicaof', '127.0.0.1', '1')
    await assert.rejects(client.set('x', '1'), /READONLY/)
    await server.cli('replicaof', 'no', 'one')
    await until('writes', async () => (await client.set('x', '1')) === 'OK')
    assert.ok(kinds().includes('redisLost'))
  })

  test('finds the master by a Sentinel, each with its own password', async (t) => {
    const server = await startRedis(t, { config: ['requirepass s3cret'], password: 's3cret' })
    const sentinel = await startSentinel(t, server, {
      masterPassword: 's3cret',
      config: ['requirepass s3ntinel'],
    })
    const hosts = `127.0.0.1:1,127.0.0.1:${sentinel.port}`
    const url = `redis-sentinel://:s3cret@${hosts}/mymaster?db=2&sentinelPassword=s3ntinel`
    const { client, answers } = connectTo(t, url)
    await answers()
    await client.set('x', '1')
    assert.equal(await server.cli('-n', '2', 'get', 'x'), '1')
    await server.restart()
    await answers()
    assert.equal(await client.get('x'), null)
  })

  test('in a cluster every key is found, and a dead master costs its own keys only', async (t) => {
    const cluster = await startCluster(t)
    // As a client that knows one node that is down, and one that is up.
    const [first, second] = cluster.nodes
    const url = `redis-cluster://127.0.0.1:1,127.0.0.1:${second?.port}`
    const { client, kinds } = connectTo(t, url)
    const keys = Array.from({ length: 60 }, (_, i) => `{${i}}`)
    const write = () => Promise.allSettled(keys.map((key) => client.set(key, key)))
    const written = async () => {
      const results = await write()
      return results.filter(({ status }) => status === 'fulfilled').length
    }
    await until('all nodes', async () => (await written()) === keys.length)
    assert.deepEqual(await Promise.all(keys.map((key) => client.get(key))), keys)
    const sizes = await Promise.all(cluster.nodes.map((node) => node.cli('dbsize')))
    assert.ok(
      sizes.every((size) => Number(size) > 0),
      sizes.join(),
    )

    await Promise.all(
      cluster.nodes.map((node) =>
        node.cli('config', 'set', 'cluster-require-full-coverage', 'no').catch(() => ''),
      ),
    )
    const silent = connectTo(t, url, { commandTimeoutMs: 300 })
    await until('all nodes', () =>
      Promise.all(keys.map((key) => silent.client.get(key))).then(() => true),
    )
    second?.pause()
    const reads = await Promise.allSettled(keys.map((key) => silent.client.get(key)))
    second?.resume()
    const timedOut = reads.filter(({ status }) => status === 'rejected')
    assert.equal(timedOut.length, Number(sizes[1]), 'a silent master costs its own keys only')
    assert.match(
      JSON.stringify(timedOut.map((read) => String('reason' in read && read.reason))),
      /timed out/,
    )

    await first?.kill()
    const lost = Number(sizes[0])
    for (let round = 0; round < 5; round++) {
      assert.equal(await written(), keys.length - lost, `round ${round}`)
    }
    assert.deepEqual(kinds(), ['redisReady'], 'the cluster is still there')
    await first?.restart()
    await until('all nodes again', async () => (await written()) === keys.length)
  })

  test('a cluster that is away as a whole, or denies the login, is tried again', async (t) => {
    const cluster = await startCluster(t)
    await Promise.all(cluster.nodes.map((node) => node.kill()))
    const { client, answers, kinds, events } = connectTo(t, cluster.url)
    await until('the loss', () => kinds().includes('redisLost'))
    await assert.rejects(client.get('x'))
    await Promise.all(cluster.nodes.map((node) => node.restart()))
    await answers()
    assert.deepEqual(kinds(), ['redisLost', 'redisReady'])
    assert.match(JSON.stringify(events), /ECONNREFUSED/)

    const setPassword = (password: string) =>
      Promise.all(
        cluster.nodes.map((node) =>
          node.cli('acl', 'setuser', 'alice', 'on', `>${password}`, '~*', '+@all'),
        ),
      )
    await setPassword('other')
    const alice = connectTo(t, cluster.url.replace('//', '//alice:s3cret@'))
    await until('the refusal', () => alice.kinds().includes('redisLost'))
    await setPassword('s3cret')
    await alice.answers()
    assert.deepEqual(alice.kinds(), ['redisLost', 'redisReady'])
    assert.match(JSON.stringify(alice.events), /WRONGPASS/)
    assert.doesNotMatch(JSON.stringify(alice.events), /s3cret/)
  })
})

describe('backoffMs', () => {
  test('doubles from 50 ms to 5 s and never beyond, jitter or not', () => {
    assert.deepEqual(
      [1, 2, 3, 7, 8, 2000].map((times) => backoffMs(times, 1)),
      [50, 100, 200, 3200, 5000, 5000],
    )
    for (let times = 1; times <= 2000; times++) {
      for (const jitter of [0, 0.3, 0.999]) {
        const ms = backoffMs(times, jitter)
        assert.ok(ms >= 25 && ms <= 5000, `${times} ${jitter}: ${ms}`)
      }
    }
  })
})
