import assert from 'node:assert/strict'
import { describe, type TestContext, test } from 'node:test'
import { isDeepStrictEqual } from 'node:util'
import { RankError } from '../model/errors.js'
import { plainTokens } from '../test/counting-engine.js'
import { NO_REDIS, startRedis, until } from '../test/redis.js'
import { digestChain } from './digest.js'
import { userHash } from './key.js'
import type { FetchedKv, RemoteRows } from './redis-kv.js'
import type { ThreadEvent } from './redis-protocol.js'
import { startRedisKv } from './redis-thread.js'
import { parseRedisUrl } from './redis-url.js'

const USER = userHash('u')
const WIDTH = 4
const tokens = plainTokens(150)
const chain = digestChain(tokens)

function someRows(seed = 0): RemoteRows {
  const array = (salt: number) =>
    new Uint8Array(
      Float32Array.from({ length: 150 * WIDTH }, (_, i) => i + salt + 1000 * seed).buffer,
    )
  return { tokens: 150, layers: [{ k: array(0), v: array(0.5) }] }
}

function somePlanes(seed = 0): Uint8Array[] {
  return someRows(seed).layers.flatMap(({ k, v }) => [k, v])
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
      shape: { codec: 'fp32', layers: 1, kWidth: WIDTH, vWidth: WIDTH, maxTokens: 150 },
      appendIsExact: true,
      ttlMs: 60_000,
    },
    (event) => events.push(event),
  )
  t.after(() => kv.close())
  const ready = () => events.filter(({ kind }) => kind === 'redisReady').length
  return { kv, events, ready }
}

/** Threads of this process that keep it alive. */
function activeThreads(): number {
  return process.getActiveResourcesInfo().filter((name) => name === 'MessagePort').length
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
    const { tokens, codec, planes } = await kv.fetch(USER, head, 150)
    assert.deepEqual(
      { tokens, codec, planes },
      { tokens: 150, codec: 'fp32', planes: somePlanes() },
    )
    const part = await kv.fetch(USER, head, 64)
    const parts = somePlanes().map((plane) => plane.subarray(0, 64 * WIDTH * 4))
    assert.deepEqual([part.tokens, part.planes], [64, parts])
    assert.equal(await kv.write(USER, chain, undefined, someRows()), 'conflict')
    await kv.forget(USER)
    assert.equal((await kv.head(USER))?.chain.tokens, 0)
  })

  test('lends memory until it is done, also what comes too late for its caller', async (t) => {
    const { kv, ready } = await open(t, (await startRedis(t)).url)
    await until('three connections', () => ready() === 3)
    const other = userHash('other')
    await kv.write(USER, chain, undefined, someRows(0))
    await kv.write(other, chain, undefined, someRows(1))
    const [head, otherHead] = [await kv.head(USER), await kv.head(other)]
    assert.ok(head !== undefined && otherHead !== undefined)
    const held = await kv.fetch(USER, head, 150)
    const first = await kv.fetch(USER, head, 150)
    first.done()
    // Into the memory of `first`; that nobody waits is known before the answer is.
    const controller = new AbortController()
    const late = kv.fetch(USER, head, 150, controller.signal)
    controller.abort(new RankError('CANCELLED', 'left'))
    await assert.rejects(late, { code: 'CANCELLED' })
    const theirs = somePlanes(1)
    const fetched: FetchedKv[] = []
    // None of these is done: that `first` changes means that one of them was lent its memory.
    await until('the memory to be lent again', async () => {
      const found = await kv.fetch(other, otherHead, 150)
      assert.deepEqual(found.planes, theirs)
      fetched.push(found)
      return isDeepStrictEqual(first.planes, theirs)
    })
    assert.deepEqual(held.planes, somePlanes(), 'what is not done stays as it was')
    for (const { done } of fetched) done()
    held.done()
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
    await kv.write(USER, chain, undefined, someRows())
    const head = await kv.head(USER)
    assert.ok(head !== undefined)
    const before = await kv.fetch(USER, head, 150)
    server.pause()
    const lost = [kv.head(USER), kv.fetch(USER, head, 150)]
    for (const call of lost) call.catch(() => {})
    await kv.thread()?.terminate()
    for (const call of lost) await assert.rejects(call, { code: 'WORKER_CRASHED' })
    await assert.rejects(kv.head(USER), { code: 'WORKER_CRASHED' })
    server.resume()
    await until('three more connections', () => ready() === 6)
    assert.ok(events.some(({ kind }) => kind === 'redisThreadCrash'))
    const again = await kv.fetch(USER, head, 150)
    // The memory outlives the thread that lent it, and is none of the next one's.
    assert.deepEqual(before.planes, somePlanes())
    before.done()
    assert.deepEqual((await kv.fetch(USER, head, 150)).planes, somePlanes())
    assert.deepEqual(again.planes, somePlanes())
  })

  test('closing ends a thread that is only about to take calls', async (t) => {
    const { kv, events } = await open(t, (await startRedis(t)).url)
    const crashes = () => events.filter(({ kind }) => kind === 'redisThreadCrash').length
    const before = activeThreads()
    await kv.thread()?.terminate()
    await until('another thread', () => crashes() === 1 && activeThreads() === before)
    assert.equal(kv.thread(), undefined, 'not yet')
    await kv.close()
    await until('it to be gone', () => activeThreads() === before - 1)
  })

  test('closing ends the thread, and calls after it reject', async (t) => {
    const { kv } = await open(t, (await startRedis(t)).url)
    await Promise.all([kv.close(), kv.close()])
    assert.equal(kv.thread(), undefined)
    await assert.rejects(kv.head(USER), { code: 'WORKER_CRASHED' })
  })
})
