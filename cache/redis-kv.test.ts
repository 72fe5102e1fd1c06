import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createRandom } from '../model/random.js'
import { sliceTokens } from '../model/tokens.js'
import { edited, plainTokens } from '../test/counting-engine.js'
import {
  assertRows,
  connectReady,
  countCommands,
  fieldsOf,
  find,
  openKv,
  rowsOf,
  save,
  TTL_MS,
  USER,
} from '../test/kv-in-redis.js'
import { NO_REDIS, startRedis } from '../test/redis.js'
import { digestChain } from './digest.js'
import { kvKey, userHash, versionsKey } from './key.js'

describe('K/V in Redis', { skip: NO_REDIS }, () => {
  test('what was written is found bit for bit, at every length around a page', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    for (const length of [1, 2, 63, 64, 65, 128, 200]) {
      const user = userHash(`u${length}`)
      const tokens = plainTokens(length)
      assert.equal(await save(kv, user, tokens), 'written')
      const found = await find(kv, user, tokens)
      assert.equal(found?.tokens, length)
      assertRows(found, tokens, `${length} tokens`)
    }
  })

  test('what is done lends its memory to the next fetch, shorter or longer', async (t) => {
    const server = await startRedis(t)
    for (const codec of ['fp32', 'fp16'] as const) {
      const kv = await openKv(t, { url: server.url, version: codec, codec })
      const fresh = await openKv(t, { url: server.url, version: codec, codec })
      const lengths = [20_000, 14_000, 19_999]
      for (const length of lengths) await save(kv, userHash(`u${length}`), plainTokens(length))
      const buffers = new Set<unknown>()
      for (const length of lengths) {
        const found = await find(kv, userHash(`u${length}`), plainTokens(length))
        const other = await find(fresh, userHash(`u${length}`), plainTokens(length))
        assert.equal(found?.tokens, length)
        assert.deepEqual(found.planes, other?.planes, `${length} tokens`)
        buffers.add(found.planes[0]?.buffer)
        found.done()
        found.done()
      }
      assert.equal(buffers.size, 1, codec)
      // Done twice is not spare twice.
      const [one, two] = await Promise.all(
        lengths.slice(0, 2).map((length) => find(kv, userHash(`u${length}`), plainTokens(length))),
      )
      assert.notEqual(one?.planes[0]?.buffer, two?.planes[0]?.buffer)
    }
  })

  test('an append writes the last page and the head, and nothing else', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    await save(kv, USER, plainTokens(130))
    const before = new Set(await fieldsOf(server))
    const written = await countCommands(server, async () => {
      assert.equal(await save(kv, USER, plainTokens(132)), 'written')
    })
    const after = await fieldsOf(server)
    assert.equal(after.length, 4)
    assert.equal(after.filter((field) => !before.has(field)).length, 1)
    assert.deepEqual(written, { stages: 1, commits: 1 })
    assertRows(await find(kv, USER, plainTokens(132)), plainTokens(132))
  })

  test('a known history and a shorter one write nothing; a changed one replaces what differs', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    const whole = plainTokens(200)
    await save(kv, USER, whole)
    assert.equal(await save(kv, USER, whole), 'current')
    assert.equal(await save(kv, USER, sliceTokens(whole, 0, 128)), 'current')
    assert.equal(await save(kv, USER, sliceTokens(whole, 0, 150)), 'current')
    const changed = edited(whole, 140)
    assert.equal(await save(kv, USER, changed), 'written')
    assertRows(await find(kv, USER, changed), changed)
    const common = await find(kv, USER, whole)
    assert.equal(common?.tokens, 128)
    assertRows(common, whole)
    assert.equal((await fieldsOf(server)).length, 5)
  })

  test('a short history replaces a longer one that has nothing to do with it', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    await save(kv, USER, plainTokens(200))
    const other = plainTokens(20, 5)
    assert.equal(await save(kv, USER, other), 'written')
    assertRows(await find(kv, USER, other), other)
  })

  test('the time to live is set from the first page on, with jitter', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    const lives = new Set<number>()
    for (let i = 0; i < 5; i++) {
      const user = userHash(`ttl${i}`)
      await save(kv, user, plainTokens(3))
      const left = Number(await server.cli('pttl', kvKey('v1:fp32', user)))
      assert.ok(left > TTL_MS * 0.9 && left <= TTL_MS * 1.1, `${left} ms`)
      lives.add(Math.round(left / 50))
    }
    assert.ok(lives.size > 1)
    assert.doesNotMatch(await server.cli('keys', '*'), /u1|ttl/)
  })

  test('a hit renews the time to live when less than half of it is left', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    const tokens = plainTokens(70)
    const keys = [kvKey('v1:fp32', USER), versionsKey(USER)]
    await save(kv, USER, tokens)
    const left = async () =>
      Promise.all(keys.map(async (key) => Number(await server.cli('pttl', key))))
    const leave = async (ms: number) => {
      for (const key of keys) await server.cli('pexpire', key, String(ms))
    }
    await leave(TTL_MS * 0.6)
    assertRows(await find(kv, USER, tokens), tokens)
    // Behind whatever that wrote, on the same connection.
    await kv.forget(userHash('other'))
    for (const ms of await left()) assert.ok(ms <= TTL_MS * 0.6, `${ms} ms`)
    await leave(TTL_MS * 0.4)
    assertRows(await find(kv, USER, tokens), tokens)
    await kv.forget(userHash('other'))
    for (const ms of await left()) assert.ok(ms > TTL_MS * 0.9, `${ms} ms`)
    // A set that was evicted is there again, or a deletion by another version would miss the entry.
    await leave(TTL_MS * 0.4)
    await server.cli('del', versionsKey(USER))
    await find(kv, USER, tokens)
    await kv.forget(userHash('other'))
    assert.equal(await server.cli('smembers', versionsKey(USER)), 'v1:fp32')
  })

  test('an entry that was written anew since its head was read is not renewed', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    await save(kv, USER, plainTokens(130))
    await server.cli('pexpire', kvKey('v1:fp32', USER), String(TTL_MS * 0.4))
    const head = await kv.head(USER)
    assert.ok(head !== undefined && head.leftMs <= TTL_MS * 0.4)
    await save(kv, USER, plainTokens(132))
    await server.cli('pexpire', kvKey('v1:fp32', USER), String(TTL_MS * 0.3))
    assert.equal((await kv.fetch(USER, head, 128)).tokens, 128)
    await kv.forget(userHash('other'))
    assert.ok(Number(await server.cli('pttl', kvKey('v1:fp32', USER))) <= TTL_MS * 0.3)
  })

  test('a head that is too long to be one is deleted, and never sent', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    const client = await connectReady(t, server.url)
    const tokens = plainTokens(70)
    await save(kv, USER, tokens)
    const key = kvKey('v1:fp32', USER)
    await client.hset(key, 'head', Buffer.alloc(1e7, 'PKV2'))
    const sent = async () =>
      Number(/total_net_output_bytes:(\d+)/.exec(await server.cli('info', 'stats'))?.[1])
    const before = await sent()
    await assert.rejects(kv.head(USER), { code: 'KV_CORRUPT', message: /got 10000000/ })
    assert.ok((await sent()) - before < 1e6)
    assert.equal(await client.exists(key), 0)
    assert.equal(await save(kv, USER, tokens), 'written')
    assertRows(await find(kv, USER, tokens), tokens)
  })

  test('of 8 racing writers one wins each round, and no entry is ever mixed', async (t) => {
    const server = await startRedis(t)
    const writers = await Promise.all(
      Array.from({ length: 8 }, () => openKv(t, { url: server.url })),
    )
    const random = createRandom(8)
    const histories = writers.map((_, w) => edited(plainTokens(260), w % 2 === 0 ? w : 100 + w))
    const outcomes = { written: 0, conflict: 0, lost: 0, current: 0 }
    for (let round = 0; round < 25; round++) {
      const lengths = writers.map(() => 1 + Math.floor(random() * 260))
      const results = await Promise.all(
        writers.map((kv, w) => {
          const tokens = sliceTokens(histories[w] ?? plainTokens(1), 0, lengths[w] ?? 1)
          return save(kv, USER, tokens)
        }),
      )
      for (const outcome of results) outcomes[outcome]++
      const reader = writers[round % 8]
      const head = await reader?.head(USER)
      assert.ok(reader !== undefined && head !== undefined)
      const found = await reader.fetch(USER, head, head.chain.tokens)
      assert.equal(found.tokens, head.chain.tokens)
      const owner = histories.findIndex(
        (tokens) => digestChain(sliceTokens(tokens, 0, found.tokens)).whole === head.chain.whole,
      )
      assertRows(found, histories[owner] ?? plainTokens(1), `round ${round}`)
      const pages = Math.ceil(found.tokens / 64)
      const stray = (await fieldsOf(server)).length - pages - 1
      assert.ok(stray >= 0, `${stray} fields too few`)
    }
    assert.ok(
      outcomes.written >= 25 && outcomes.conflict + outcomes.lost > 0,
      JSON.stringify(outcomes),
    )
  })

  test('a reader that finds pages gone takes what is before them', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    const tokens = plainTokens(200)
    await save(kv, USER, tokens)
    const head = await kv.head(USER)
    assert.ok(head !== undefined)
    await server.cli('hdel', kvKey('v1:fp32', USER), head.chain.pages[2] ?? '')
    const found = await kv.fetch(USER, head, 200)
    assert.equal(found.tokens, 128)
    assertRows(found, tokens)
    await server.cli('del', kvKey('v1:fp32', USER))
    assert.equal((await kv.fetch(USER, head, 200)).tokens, 0)
  })

  test('forgets a user under every model and codec, and what was being written meanwhile', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    const other = await openKv(t, { url: server.url, version: 'v2' })
    const coded = await openKv(t, { url: server.url, codec: 'int8' })
    const tokens = plainTokens(100)
    for (const each of [kv, other, coded]) await save(each, USER, tokens)
    const seen = await kv.head(USER)
    const unknown = userHash('new')
    const seenOfNew = await kv.head(unknown)
    await kv.forget(USER)
    await kv.forget(unknown)
    assert.equal(await find(kv, USER, tokens), undefined)
    assert.equal(await find(other, USER, tokens), undefined)
    assert.equal(await find(coded, USER, tokens), undefined)
    const late = [kv.write(USER, digestChain(tokens), seen, rowsOf(tokens))]
    late.push(kv.write(unknown, digestChain(tokens), seenOfNew, rowsOf(tokens)))
    assert.deepEqual(await Promise.all(late), ['conflict', 'conflict'])
    assert.equal(await find(kv, USER, tokens), undefined)
    // A request of later.
    assert.equal(await save(kv, USER, tokens), 'written')
    assertRows(await find(kv, USER, tokens), tokens)
  })

  test('where an append is not exact only the whole history is found', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url, appendIsExact: false })
    const tokens = plainTokens(200)
    await save(kv, USER, sliceTokens(tokens, 0, 150), false)
    await save(kv, USER, tokens, false)
    assert.equal((await fieldsOf(server)).length, 5)
    assertRows(await find(kv, USER, tokens), tokens)
    const head = await kv.head(USER)
    assert.ok(head !== undefined)
    await server.cli('hdel', kvKey('v1:fp32', USER), `${head.chain.whole} ${head.chain.pages[2]}`)
    assert.equal((await kv.fetch(USER, head, 200)).tokens, 0)
  })

  test('scripts that the server forgot are sent again', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    await save(kv, USER, plainTokens(10))
    await server.cli('script', 'flush')
    assert.equal(await save(kv, USER, plainTokens(12)), 'written')
  })

  test('a random token makes every head different', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    const tokens = plainTokens(10)
    await save(kv, USER, tokens)
    const first = await kv.head(USER)
    await server.cli('del', kvKey('v1:fp32', USER))
    await save(kv, USER, tokens)
    const second = await kv.head(USER)
    assert.notDeepEqual(first?.raw, second?.raw)
    assert.deepEqual(first?.chain, second?.chain)
    // The entry of before is gone: whoever began from it loses.
    assert.equal(await kv.write(USER, digestChain(tokens), first, rowsOf(tokens)), 'conflict')
  })
})
