// A replica's view of K/V in a real Redis, for the tests of cache/redis-kv.ts.
import assert from 'node:assert/strict'
import type { TestContext } from 'node:test'
import { coveredTokens, digestChain } from '../cache/digest.js'
import { kvKey, kvVariant, type UserHash, userHash } from '../cache/key.js'
import { type PageShape, pageStrings } from '../cache/page.js'
import { connectRedis, type RedisClient } from '../cache/redis.js'
import {
  createRedisKv,
  type FetchedKv,
  type RedisKv,
  type RemoteRows,
  writeStart,
} from '../cache/redis-kv.js'
import type { LongStrings } from '../cache/redis-receiver.js'
import { parseRedisUrl } from '../cache/redis-url.js'
import { createSpareMemory, type SpareMemory } from '../cache/spare-memory.js'
import { createKvCodec } from '../model/engine/codec/codec.js'
import type { KvCodecName } from '../model/engine/codec/graphs.js'
import { arrayWidths } from '../model/engine/kv-shape.js'
import { type HistoryTokens, sliceTokens } from '../model/tokens.js'
import { type RedisServer, until } from './redis.js'

export const LAYERS = 2
export const K_WIDTH = 3
export const V_WIDTH = 2
export const USER = userHash('u1')
export const TTL_MS = 60_000

/** K/V that says which tokens it belongs to: every element is its token's first row, and its place. */
export function rowsOf(
  tokens: HistoryTokens,
  start = 0,
  kWidth = K_WIDTH,
  vWidth = V_WIDTH,
): RemoteRows {
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

/** A client that is connected, as long as the test lasts. */
export async function connectReady(
  t: TestContext,
  url: string,
  role = 'test',
  longStrings?: LongStrings,
): Promise<RedisClient> {
  const client = connectRedis(parseRedisUrl(url), {
    ...{ role, commandTimeoutMs: 5_000 },
    ...(longStrings !== undefined && { longStrings }),
  })
  t.after(() => client.disconnect())
  await until(`${role} to connect`, () => client.status === 'ready')
  return client
}

const NARROW = { kWidth: K_WIDTH, vWidth: V_WIDTH }

export async function openKv(t: TestContext, options: Options) {
  const { url, version = 'v1', codec = 'fp32', appendIsExact = true } = options
  const { kWidth = K_WIDTH, vWidth = V_WIDTH } = options
  const shape: PageShape = { codec, layers: LAYERS, kWidth, vWidth, maxTokens: 40_000 }
  const kvCodec = createKvCodec(codec, 'fp32', arrayWidths(shape))
  const pages = pageStrings(kvCodec.planeBytes)
  const kv = createRedisKv({
    readers: [
      await connectReady(t, url, 'read-0', pages),
      await connectReady(t, url, 'read-1', pages),
    ],
    writer: await connectReady(t, url, 'write'),
    codec: kvCodec,
    ...{ version, shape, appendIsExact, ttlMs: TTL_MS },
    memory: options.memory ?? createSpareMemory(2 ** 26),
  })
  t.after(() => kv.close())
  return kv
}

/** What a replica does with a user's whole K/V. */
export async function save(
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
export async function find(kv: RedisKv, user: UserHash, tokens: HistoryTokens) {
  const head = await kv.head(user)
  if (head === undefined) return undefined
  const covered = coveredTokens(head.chain, tokens, digestChain(tokens))
  return covered === 0 ? undefined : kv.fetch(user, head, covered)
}

/** Of the codec fp32, whose planes are the rows. */
export function assertRows(
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

export const fieldsOf = async (server: RedisServer, user = USER, version = 'v1') =>
  (await server.cli('hkeys', kvKey(kvVariant(version, 'fp32'), user)))
    .split('\n')
    .filter((field) => field !== '')

export async function calls(server: RedisServer, command: string): Promise<number> {
  const stats = await server.cli('info', 'commandstats')
  return Number(new RegExp(`cmdstat_${command}:calls=(\\d+)`).exec(stats)?.[1] ?? 0)
}

/** How many pages' and how many heads' scripts ran: each stages with HSET, only a commit has HKEYS. */
export async function countCommands(server: RedisServer, work: () => Promise<void>) {
  const [hset, hkeys] = [await calls(server, 'hset'), await calls(server, 'hkeys')]
  await work()
  const commits = (await calls(server, 'hkeys')) - hkeys
  return { stages: (await calls(server, 'hset')) - hset - commits, commits }
}
