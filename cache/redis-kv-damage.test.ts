import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { RankError } from '../model/errors.js'
import { createRandom } from '../model/random.js'
import { plainTokens } from '../test/counting-engine.js'
import { assertRows, connectReady, find, openKv, rowsOf, save, USER } from '../test/kv-in-redis.js'
import { NO_REDIS, startRedis } from '../test/redis.js'
import { digestChain } from './digest.js'
import { kvKey, kvVariant, userHash } from './key.js'

describe('K/V in Redis that is not what was written', { skip: NO_REDIS }, () => {
  test('10,000 mutated entries are found as they were, or not at all', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    const client = await connectReady(t, server.url)
    const random = createRandom(17)
    const below = (n: number) => Math.floor(random() * n)
    const tokens = plainTokens(150)
    const key = kvKey('v1:fp32', USER)
    await save(kv, USER, tokens)
    const original = await client.hgetallBuffer(key)
    const fields = Object.keys(original)
    const ends = { whole: 0, part: 0, nothing: 0, corrupt: 0 }
    for (let i = 0; i < 10_000; i++) {
      const field = fields[below(fields.length)] ?? ''
      const bytes = Buffer.from(original[field] ?? [])
      for (let flips = 1 + below(3); flips > 0; flips--) {
        const at = below(bytes.length)
        bytes[at] = below(256)
      }
      await client.hset(key, { ...original, [field]: bytes })
      try {
        const found = await find(kv, USER, tokens)
        if (found !== undefined) assertRows(found, tokens, `mutation ${i} of ${field}`)
        const kept = found?.tokens ?? 0
        ends[kept === 150 ? 'whole' : kept > 0 ? 'part' : 'nothing']++
      } catch (error) {
        assert.ok(error instanceof RankError && error.code === 'KV_CORRUPT', String(error))
        assert.equal(await client.exists(key), 0, 'what is corrupt is deleted')
        ends.corrupt++
      }
    }
    // A byte may be replaced by itself.
    assert.ok(ends.corrupt > 9_800, JSON.stringify(ends))
  })

  test('entries swapped between users and between models are corrupt', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    const other = await openKv(t, { url: server.url, version: 'v2' })
    const tokens = plainTokens(100)
    await save(kv, USER, tokens)
    await server.cli('copy', kvKey('v1:fp32', USER), kvKey('v1:fp32', userHash('u2')))
    await server.cli('copy', kvKey('v1:fp32', USER), kvKey('v2:fp32', USER))
    await assert.rejects(find(kv, userHash('u2'), tokens), { code: 'KV_CORRUPT' })
    await assert.rejects(find(other, USER, tokens), { code: 'KV_CORRUPT' })
    assertRows(await find(kv, USER, tokens), tokens)
    assert.equal(await find(other, USER, tokens), undefined)
  })

  test('what is no hash is deleted, and written over', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    const tokens = plainTokens(70)
    await server.cli('set', kvKey('v1:fp32', USER), 'a string')
    await assert.rejects(find(kv, USER, tokens), { code: 'KV_CORRUPT', message: /WRONGTYPE/ })
    assert.equal(await find(kv, USER, tokens), undefined)
    await save(kv, USER, tokens)
    const head = await kv.head(USER)
    assert.ok(head !== undefined)
    await server.cli('del', kvKey('v1:fp32', USER))
    await server.cli('rpush', kvKey('v1:fp32', USER), 'a list')
    await assert.rejects(kv.fetch(USER, head, 70), { code: 'KV_CORRUPT' })
    assert.equal(await save(kv, USER, tokens), 'written')
    assertRows(await find(kv, USER, tokens), tokens)
  })

  test('an entry that lost a page does not keep it lost: it is written anew', async (t) => {
    const server = await startRedis(t)
    const kv = await openKv(t, { url: server.url })
    const tokens = plainTokens(200)
    const lose = async (page: number) => {
      const head = await kv.head(USER)
      await server.cli('hdel', kvKey('v1:fp32', USER), head?.chain.pages[page] ?? '')
    }
    await save(kv, USER, tokens)
    await lose(1)
    assert.equal((await find(kv, USER, tokens))?.tokens, 64, 'found by a reader')
    assert.equal(await save(kv, USER, tokens), 'written')
    assertRows(await find(kv, USER, tokens), tokens)
    await lose(0)
    assert.equal(await save(kv, USER, plainTokens(202)), 'lost', 'found by an append')
    assert.equal(await save(kv, USER, plainTokens(202)), 'written')
    assertRows(await find(kv, USER, plainTokens(202)), plainTokens(202))
  })

  test('pages of another codec are corrupt even where they are as long', async (t) => {
    const server = await startRedis(t)
    // fp16: 2 bytes x (K + V); int8: a byte each, and 4 of scale for each of both.
    const widths = { kWidth: 4, vWidth: 4 }
    const ours = await openKv(t, { url: server.url, codec: 'fp16', ...widths })
    const theirs = await openKv(t, { url: server.url, codec: 'int8', ...widths })
    const tokens = plainTokens(70)
    const rows = { tokens: 70, layers: rowsOf(tokens, 0, 4, 4).layers }
    const chain = digestChain(tokens)
    await ours.write(USER, chain, undefined, rows)
    const head = await ours.head(USER)
    assert.ok(head !== undefined)
    await theirs.write(USER, chain, undefined, rows)
    // Our head, and their pages under the same names.
    const [mine, other] = (['fp16', 'int8'] as const).map((c) => kvKey(kvVariant('v1', c), USER))
    await server.cli('copy', other ?? '', mine ?? '', 'REPLACE')
    await assert.rejects(ours.fetch(USER, head, 70), { code: 'KV_CORRUPT' })
  })

  test('another codec keeps an entry of its own, and finds one that was moved corrupt', async (t) => {
    const server = await startRedis(t)
    const before = await openKv(t, { url: server.url })
    const after = await openKv(t, { url: server.url, codec: 'fp16' })
    const tokens = plainTokens(70)
    await save(before, USER, tokens)
    assert.equal(await find(after, USER, tokens), undefined)
    await server.cli('copy', kvKey('v1:fp32', USER), kvKey('v1:fp16', USER))
    await assert.rejects(find(after, USER, tokens), {
      code: 'KV_CORRUPT',
      message: /expected K\/V of fp16 2x\(3\+2\), got fp32 2x\(3\+2\)/,
    })
    assert.equal(await save(after, USER, tokens), 'written')
    assert.equal((await find(after, USER, tokens))?.tokens, 70)
    assertRows(await find(before, USER, tokens), tokens)
  })
})
