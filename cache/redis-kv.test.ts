import assert from 'node:assert/strict'
import { describe, type TestContext, test } from 'node:test'
import { createKvCodec } from '../model/engine/codec/codec.js'
import type { KvCodecName } from '../model/engine/codec/graphs.js'
import { arrayWidths } from '../model/engine/kv-shape.js'
import { RankError } from '../model/errors.js'
import { createRandom } from '../model/random.js'
import { type HistoryTokens, sliceTokens } from '../model/tokens.js'
import { edited, plainTokens } from '../test/counting-engine.js'
import { startProxy } from '../test/proxy.js'
import {
  makeCertificates,
  NO_REDIS,
  type RedisServer,
  startCluster,
  startRedis,
  until,
} from '../test/redis.js'
import { coveredTokens, digestChain } from './digest.js'
import { kvKey, kvVariant, type UserHash, userHash, versionsKey } from './key.js'
import { type PageShape, pageStrings } from './page.js'
import { connectRedis, type RedisClient } from './redis.js'
import {
  createRedisKv,
  type FetchedKv,
  type RedisKv,
  type RemoteRows,
  writeStart,
} from './redis-kv.js'
import type { LongStrings } from './redis-receiver.js'
import { parseRedisUrl } from './redis-url.js'
import { createSpareMemory, type SpareMemory } from './spare-memory.js'

const LAYERS = 2
const K_WIDTH = 3
const V_WIDTH = 2
const USER = userHash('u1')
const TTL_MS = 60_000

/** K/V that says which tokens it belongs to: every element is its token's first row, and its place. */
function rowsOf(tokens: HistoryTokens, start = 0, kWidth = K_WIDTH, vWidth = V_WIDTH): RemoteRows {
  const slots = tokens.rows.length / tokens.length
  const array = (layer: number, width: number) => {
    const values = Float32Array.from({ length: (tokens.length - start) * width }, (_, i) => {
      const token = start + Math.floor(i / width)
      return (tokens.rows[token * slots] ?? 0) + layer / 4 + (i % width) / 16
    })
    return new Uint8Array(values.buffer)
  }
  return {
    tokens: tokens.length - start,
    layers: Array.from({ length: LAYERS }, (_, l) => ({
      k: array(l, kWidth),
      v: array(l, vWidth),
    })),
  }
}

type Options = {
  readonly url: string
  readonly version?: string
  readonly codec?: KvCodecName
  readonly appendIsExact?: boolean
  readonly kWidth?: number
  readonly vWidth?: number
  readonly memory?: SpareMemory
}

const NARROW = { kWidth: K_WIDTH, vWidth: V_WIDTH }

async function open(t: TestContext, options: Options) {
  const { url, version = 'v1', codec = 'fp32', appendIsExact = true } = options
  const clients: RedisClient[] = []
  const connect = async (role: string, longStrings?: LongStrings) => {
    const client = connectRedis(parseRedisUrl(url), {
      ...{ role, commandTimeoutMs: 5_000 },
      ...(longStrings !== undefined && { longStrings }),
    })
    clients.push(client)
    await until(`${role} to connect`, () => client.status === 'ready')
    return client
  }
  const { kWidth = K_WIDTH, vWidth = V_WIDTH } = options
  const shape: PageShape = { codec, layers: LAYERS, kWidth, vWidth, maxTokens: 40_000 }
  const kvCodec = createKvCodec(codec, 'fp32', arrayWidths(shape))
  const pages = pageStrings(kvCodec.planeBytes)
  const kv = createRedisKv({
    readers: [await connect('read-0', pages), await connect('read-1', pages)],
    writer: await connect('write'),
    codec: kvCodec,
    ...{ version, shape, appendIsExact, ttlMs: TTL_MS },
    memory: options.memory ?? createSpareMemory(2 ** 26),
  })
  t.after(() => kv.close())
  return kv
}

/** What a replica does with a user's whole K/V. */
async function save(
  kv: RedisKv,
  user: UserHash,
  tokens: HistoryTokens,
  appendIsExact = true,
  { kWidth, vWidth } = NARROW,
) {
  const chain = digestChain(tokens)
  const previous = await kv.head(user)
  const start = writeStart(previous, chain, appendIsExact)
  if (start === undefined) return 'current'
  return kv.write(user, chain, previous, rowsOf(tokens, start, kWidth, vWidth))
}

/** What a replica finds of a history. */
async function find(kv: RedisKv, user: UserHash, tokens: HistoryTokens) {
  const head = await kv.head(user)
  if (head === undefined) return undefined
  const covered = coveredTokens(head.chain, tokens, digestChain(tokens))
  return covered === 0 ? undefined : kv.fetch(user, head, covered)
}

/** Of the codec fp32, whose planes are the rows. */
function assertRows(
  found: FetchedKv | undefined,
  tokens: HistoryTokens,
  what = '',
  { kWidth, vWidth } = NARROW,
) {
  assert.ok(found !== undefined, `nothing found ${what}`)
  const expected = rowsOf(sliceTokens(tokens, 0, found.tokens), 0, kWidth, vWidth)
  assert.equal(found.codec, 'fp32')
  assert.equal(found.planes.length, 2 * LAYERS)
  expected.layers.forEach(({ k, v }, i) => {
    const [gotK = [], gotV = []] = found.planes.slice(2 * i)
    assert.deepEqual(Buffer.from(gotK), Buffer.from(k), `K ${i} ${what}`)
    assert.deepEqual(Buffer.from(gotV), Buffer.from(v), `V ${i} ${what}`)
  })
}

const fieldsOf = async (server: RedisServer, user = USER, version = 'v1') =>
  (await server.cli('hkeys', kvKey(kvVariant(version, 'fp32'), user)))
    .split('\n')
    .filter((field) => field !== '')

describe('K/V in Redis', { skip: NO_REDIS }, () => {
  test('what was written is found bit for bit, at every length around a page', async (t) => {
    const server = await startRedis(t)
    const kv = await open(t, { url: server.url })
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
      const kv = await open(t, { url: server.url, version: codec, codec })
      const fresh = await open(t, { url: server.url, version: codec, codec })
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
    const kv = await open(t, { url: server.url })
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
    const kv = await open(t, { url: server.url })
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
    const kv = await open(t, { url: server.url })
    await save(kv, USER, plainTokens(200))
    const other = plainTokens(20, 5)
    assert.equal(await save(kv, USER, other), 'written')
    assertRows(await find(kv, USER, other), other)
  })

  test('the time to live is set from the first page on, with jitter', async (t) => {
    const server = await startRedis(t)
    const kv = await open(t, { url: server.url })
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
    const kv = await open(t, { url: server.url })
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
    const kv = await open(t, { url: server.url })
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
    const kv = await open(t, { url: server.url })
    const client = connectRedis(parseRedisUrl(server.url), {
      role: 'test',
      commandTimeoutMs: 5_000,
    })
    t.after(() => client.disconnect())
    await until('the test to connect', () => client.status === 'ready')
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
    const writers = await Promise.all(Array.from({ length: 8 }, () => open(t, { url: server.url })))
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
    const kv = await open(t, { url: server.url })
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

  test('10,000 mutated entries are found as they were, or not at all', async (t) => {
    const server = await startRedis(t)
    const kv = await open(t, { url: server.url })
    const client = connectRedis(parseRedisUrl(server.url), {
      role: 'test',
      commandTimeoutMs: 5_000,
    })
    t.after(() => client.disconnect())
    await until('the test to connect', () => client.status === 'ready')
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
    const kv = await open(t, { url: server.url })
    const other = await open(t, { url: server.url, version: 'v2' })
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
    const kv = await open(t, { url: server.url })
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
    const kv = await open(t, { url: server.url })
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
    const ours = await open(t, { url: server.url, codec: 'fp16', ...widths })
    const theirs = await open(t, { url: server.url, codec: 'int8', ...widths })
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
    const before = await open(t, { url: server.url })
    const after = await open(t, { url: server.url, codec: 'fp16' })
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

  test('forgets a user under every model and codec, and what was being written meanwhile', async (t) => {
    const server = await startRedis(t)
    const kv = await open(t, { url: server.url })
    const other = await open(t, { url: server.url, version: 'v2' })
    const coded = await open(t, { url: server.url, codec: 'int8' })
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
    const kv = await open(t, { url: server.url, appendIsExact: false })
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

  test('rows of many pages travel in commands of half a megabyte', async (t) => {
    const server = await startRedis(t)
    const kv = await open(t, { url: server.url })
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
      const kv = await open(t, { url: i === 0 ? url : `${url}${query}`, ...LONG })
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
    const kv = await open(t, { url: `redis://127.0.0.1:${proxy.port}`, memory, ...LONG })
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
    const kv = await open(t, { url: server.url })
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
    const kv = await open(t, { url })
    for (let u = 0; u < 30; u++) {
      const user = userHash(`c${u}`)
      const tokens = plainTokens(100 + u)
      assert.equal(await save(kv, user, tokens), 'written')
      assertRows(await find(kv, user, tokens), tokens)
    }
    await kv.forget(userHash('c3'))
    assert.equal(await find(kv, userHash('c3'), plainTokens(103)), undefined)
  })

  test('scripts that the server forgot are sent again', async (t) => {
    const server = await startRedis(t)
    const kv = await open(t, { url: server.url })
    await save(kv, USER, plainTokens(10))
    await server.cli('script', 'flush')
    assert.equal(await save(kv, USER, plainTokens(12)), 'written')
  })

  test('a random token makes every head different', async (t) => {
    const server = await startRedis(t)
    const kv = await open(t, { url: server.url })
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

async function calls(server: RedisServer, command: string): Promise<number> {
  const stats = await server.cli('info', 'commandstats')
  return Number(new RegExp(`cmdstat_${command}:calls=(\\d+)`).exec(stats)?.[1] ?? 0)
}

/** How many pages' and how many heads' scripts ran: each stages with HSET, only a commit has HKEYS. */
async function countCommands(server: RedisServer, work: () => Promise<void>) {
  const [hset, hkeys] = [await calls(server, 'hset'), await calls(server, 'hkeys')]
  await work()
  const commits = (await calls(server, 'hkeys')) - hkeys
  return { stages: (await calls(server, 'hset')) - hset - commits, commits }
}
