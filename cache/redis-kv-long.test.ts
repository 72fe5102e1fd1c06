import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { RankError } from '../model/errors.js'
import { edited, plainTokens } from '../test/counting-engine.js'
import { assertRows, calls, find, openKv, save, USER } from '../test/kv-in-redis.js'
import { startProxy } from '../test/proxy.js'
import { makeCertificates, NO_REDIS, startCluster, startRedis, until } from '../test/redis.js'
import { userHash } from './key.js'
import { createSpareMemory } from './spare-memory.js'

describe('K/V in Redis of long histories and over the network', { skip: NO_REDIS }, () => {
  test('rows of many pages travel in commands of half a megabyte', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    const tokens = plainTokens(40_000)
    await save(kv, USER, tokens)
    const before = await calls(server, 'hmget')
    assertRows(await find(kv, USER, tokens), tokens)
    // 40,000 tokens x 40 bytes, pages of 64 tokens.
    assert.equal(
      (await calls(server, 'hmget')) - before,
      Math.ceil(625 / Math.floor(2 ** 19 / 2560)),
    )
  })

  /** Pages of 164 kB: three are more than half a megabyte, two are not. */
  const LONG = { kWidth: 200, vWidth: 120 }

  test('long pages of users who are fetched at once are never mixed, over TLS neither', async (t) => {
    const tls = makeCertificates(t)
    const servers = [await startRedis(t), await startRedis(t, { tls })]
    const query = `?ca=${tls.ca}&cert=${tls.cert}&key=${tls.key}`
    for (const [i, { url }] of servers.entries()) {
      const kv = await openKv(t, { url: i === 0 ? url : `${url}${query}`, ...LONG })
      const users = [0, 1, 2, 3, 4, 5].map((u) => ({
        user: userHash(`u${u}`),
        tokens: edited(plainTokens(650 + u), u),
      }))
      for (const { user, tokens } of users) await save(kv, user, tokens, true, LONG)
      await Promise.all(
        users.map(async ({ user, tokens }) => {
          const found = await find(kv, user, tokens)
          assert.equal(found?.tokens, tokens.length)
          assertRows(found, tokens, url, LONG)
        }),
      )
    }
  })

  test('a connection that is cut within a page costs that fetch, not the entry', async (t) => {
    const server = await startRedis(t)
    const proxy = await startProxy(t, server.port)
    const { take, give } = createSpareMemory(2 ** 26)
    let lent = 0
    const memory = {
      take: (bytes: number) => {
        lent++
        return take(bytes)
      },
      give: (buffer: SharedArrayBuffer) => {
        lent--
        give(buffer)
      },
    }
    const kv = await openKv(t, { url: `redis://127.0.0.1:${proxy.port}`, memory, ...LONG })
    const tokens = plainTokens(650)
    await save(kv, USER, tokens, true, LONG)
    for (const bytes of [1, 5, 20, 1e5, 164_000, 1e6, 1.5e6]) {
      const head = await kv.head(USER)
      assert.ok(head !== undefined)
      proxy.cutAfter(bytes)
      await assert.rejects(kv.fetch(USER, head, 650), (error) => !(error instanceof RankError))
      assert.equal(lent, 0, 'its memory came back')
      await until('the way back', async () => (await kv.head(USER)) !== undefined)
      await until('the other reader', async () => (await kv.head(USER)) !== undefined)
      const found = await find(kv, USER, tokens)
      assertRows(found, tokens, `after ${bytes} bytes`, LONG)
      found?.done()
    }
  })

  test('an aborted fetch asks for no more', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    const tokens = plainTokens(40_000)
    await save(kv, USER, tokens)
    const head = await kv.head(USER)
    assert.ok(head !== undefined)
    const before = await calls(server, 'hmget')
    const controller = new AbortController()
    const fetching = kv.fetch(USER, head, 40_000, controller.signal)
    controller.abort(new RankError('CANCELLED', 'left'))
    await assert.rejects(fetching, { code: 'CANCELLED' })
    assert.ok((await calls(server, 'hmget')) - before <= 2)
  })

  test('works on a cluster, every user on one node', async (t) => {
    const { url } = await startCluster(t)
    const kv = await openKv(t, { url })
    for (let u = 0; u < 30; u++) {
      const user = userHash(`c${u}`)
      const tokens = plainTokens(100 + u)
      assert.equal(await save(kv, user, tokens), 'written')
      assertRows(await find(kv, user, tokens), tokens)
    }
    await kv.forget(userHash('c3'))
    assert.equal(await find(kv, userHash('c3'), plainTokens(103)), undefined)
  })
})
