import assert from 'node:assert/strict'
import { describe, type TestContext, test } from 'node:test'
import { RankError } from '../model/errors.js'
import { plainTokens } from '../test/counting-engine.js'
import { NO_REDIS, startRedis, until } from '../test/redis.js'
import { digestChain } from './digest.js'
import { userHash } from './key.js'
import type { RemoteRows } from './redis-kv.js'
import type { ThreadEvent } from './redis-protocol.js'
import { startRedisKv } from './redis-thread.js'
import { parseRedisUrl } from './redis-url.js'

const USER = userHash('u')
const WIDTH = 4
const tokens = plainTokens(150)
const chain = digestChain(tokens)

function someRows(): RemoteRows {
  const array = (salt: number) =>
    new Uint8Array(Float32Array.from({ length: 150 * WIDTH }, (_, i) => i + salt).buffer)
  return { tokens: 150, layers: [{ k: array(0), v: array(0.5) }] }
}

async function open(t: TestContext, url: string) {
  const events: ThreadEvent[] = []
  const kv = await startRedisKv(
    {
      target: parseRedisUrl(url),
      connections: 2,
      codec: 'fp32',
      precision: 'fp32',
      version: 'v1',
      shape: { codec: 'fp32', layers: 1, kWidth: WIDTH, vWidth: WIDTH },
      appendIsExact: true,
      ttlMs: 60_000,
    },
    (event) => events.push(event),
  )
  t.after(() => kv.close())
  const ready = () => events.filter(({ kind }) => kind === 'redisReady').length
  return { kv, events, ready }
}

describe('K/V in Redis, in a thread', { skip: NO_REDIS }, () => {
  test('does what it does without one, and takes the rows it is given', async (t) => {
    const { kv, ready } = await open(t, (await startRedis(t)).url)
    await until('three connections', () => ready() === 3)
    assert.equal(await kv.head(USER), undefined)
    const rows = someRows()
    assert.equal(await kv.write(USER, chain, undefined, rows), 'written')
    assert.equal(rows.layers[0]?.k.byteLength, 0, 'moved, not copied')
    const head = await kv.head(USER)
    assert.deepEqual(head?.chain, chain)
    assert.ok(head !== undefined)
    const { tokens, layers, done } = await kv.fetch(USER, head, 150)
    assert.deepEqual({ tokens, layers }, someRows())
    done()
    assert.equal(layers[0]?.k.byteLength, 0, 'their memory went back')
    const part = await kv.fetch(USER, head, 64)
    assert.deepEqual(part.layers[0]?.k, someRows().layers[0]?.k.subarray(0, 64 * WIDTH * 4))
    assert.equal(part.tokens, 64)
    assert.equal(part.layers[0]?.k.byteLength, 64 * WIDTH * 4)
    assert.equal(await kv.write(USER, chain, undefined, someRows()), 'conflict')
    await kv.forget(USER)
    assert.equal((await kv.head(USER))?.chain.tokens, 0)
  })

  test('starts and answers without Redis, and finds it when it comes', async (t) => {
    const server = await startRedis(t)
    await server.kill()
    const { kv, events, ready } = await open(t, server.url)
    await until('the loss to be told', () => events.some(({ kind }) => kind === 'redisLost'))
    await assert.rejects(kv.head(USER))
    await server.restart()
    await until('three connections', () => ready() === 3)
    assert.equal(await kv.head(USER), undefined)
  })

  test('an abort answers at once, whatever Redis does', async (t) => {
    const server = await startRedis(t)
    const { kv, ready } = await open(t, server.url)
    await until('three connections', () => ready() === 3)
    server.pause()
    t.after(() => server.resume())
    const controller = new AbortController()
    const asked = kv.head(USER, controller.signal)
    controller.abort(new RankError('DEADLINE_EXCEEDED', 'as asked'))
    await assert.rejects(asked, { code: 'DEADLINE_EXCEEDED' })
  })

  test('a thread that dies takes its calls with it and is started again', async (t) => {
    const server = await startRedis(t)
    const { kv, events, ready } = await open(t, server.url)
    await until('three connections', () => ready() === 3)
    server.pause()
    const lost = kv.head(USER)
    lost.catch(() => {})
    await kv.thread()?.terminate()
    await assert.rejects(lost, { code: 'WORKER_CRASHED' })
    await assert.rejects(kv.head(USER), { code: 'WORKER_CRASHED' })
    server.resume()
    await until('three more connections', () => ready() === 6)
    assert.ok(events.some(({ kind }) => kind === 'redisThreadCrash'))
    assert.equal(await kv.head(USER), undefined)
  })

  test('closing ends the thread, and calls after it reject', async (t) => {
    const { kv } = await open(t, (await startRedis(t)).url)
    await Promise.all([kv.close(), kv.close()])
    assert.equal(kv.thread(), undefined)
    await assert.rejects(kv.head(USER), { code: 'WORKER_CRASHED' })
  })
})
