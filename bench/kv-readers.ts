// Reads from tier 2 by connections and concurrent users, and what a small user waits for behind large
// ones. Called by bench/run-kv.ts.
import { kvKey, kvVariant } from '../cache/key.js'
import { HEAD_FIELD } from '../cache/kv-scripts.js'
import type { RedisClient } from '../cache/redis.js'
import type { RedisKv } from '../cache/redis-kv.js'
import { randomHistory } from '../falcon/calibrate.js'
import { createEngine } from '../model/engine/create.js'
import type { Bundle } from '../model/manifest.js'
import { createRandom } from '../model/random.js'
import {
  fetchUser,
  openInThread,
  openThread,
  type StoredUser,
  storeUser,
  storeUsers,
} from './kv-user.js'
import type { BenchRedis } from './redis.js'
import { callsPerSecond, median, quantile } from './stats.js'

const CODEC = 'fp16'
const CONNECTIONS = [1, 4, 16]
const USERS = [1, 4, 16]
const LARGE_USERS = 4
const SMALL_TOKENS = 64
const MS_PER_POINT = 1_500
const HEAD_CALLERS = [1, 16, 64]
const HEAD_ROUNDS = 5
const MS_PER_HEAD_ROUND = 200

export type ReadersResult = {
  readonly codec: string
  readonly tokens: number
  readonly throughput: readonly {
    readonly connections: number
    readonly users: number
    readonly fetchesPerSecond: number
    readonly p50Ms: number
    readonly p99Ms: number
  }[]
  readonly smallTokens: number
  readonly largeUsers: number
  /** A small user's head and fetch, alone and while `largeUsers` others are fetched. */
  readonly small: readonly {
    readonly connections: number
    readonly alone: { readonly p50Ms: number; readonly p99Ms: number }
    readonly behind: { readonly p50Ms: number; readonly p99Ms: number }
  }[]
  /** Heads per second over one connection. */
  readonly heads: readonly {
    readonly callers: number
    readonly plain: number
    readonly autoPipelined: number
  }[]
}

export async function benchReaders(
  bundle: Bundle,
  redis: BenchRedis,
  log: (line: string) => void,
): Promise<ReadersResult> {
  const { manifest } = bundle
  const { maxTokens } = manifest.config
  const history = randomHistory(manifest, maxTokens, createRandom(3))
  const engine = await createEngine({ bundle, workers: 1 })
  const writer = await openInThread(redis, manifest, CODEC)
  const names = Array.from({ length: Math.max(...USERS) }, (_, u) => `large ${u}`)
  const large = await storeUsers(writer, engine, names, history, maxTokens)
  const small = await storeUser(writer, engine, 'small', history, SMALL_TOKENS)
  await writer.close()
  await engine.close()
  const throughput = []
  const smallPoints = []
  for (const connections of CONNECTIONS) {
    const kv = await openThread(redis, manifest, CODEC, connections)
    for (const users of USERS) {
      const times: number[] = []
      const callers = large.slice(0, users).map((user) => () => timed(kv, user, times))
      await Promise.all(callers.map((call) => call()))
      times.length = 0
      const fetchesPerSecond = await callsPerSecond(callers, MS_PER_POINT)
      const ms = { p50Ms: median(times), p99Ms: quantile(times, 0.99) }
      throughput.push({ connections, users, fetchesPerSecond, ...ms })
      log(`${connections} connections, ${users} users: ${fetchesPerSecond.toFixed(1)} fetches/s`)
    }
    const alone = await smallUser(kv, small, [])
    const behind = await smallUser(kv, small, large.slice(0, LARGE_USERS))
    smallPoints.push({ connections, alone, behind })
    log(
      `${connections} connections, small user: alone p50 ${alone.p50Ms.toFixed(2)}, behind large ones p50 ${behind.p50Ms.toFixed(1)}, p99 ${behind.p99Ms.toFixed(1)} ms`,
    )
    await kv.close()
  }
  const client = await redis.connect('bench-heads')
  const heads = await benchHeads(client, kvKey(kvVariant(manifest.version, CODEC), small.user))
  for (const { callers, plain, autoPipelined } of heads) {
    log(
      `${callers} callers: ${plain.toFixed(0)} heads/s, autopipelined ${autoPipelined.toFixed(0)}`,
    )
  }
  return {
    ...{ codec: CODEC, tokens: maxTokens, throughput },
    ...{ smallTokens: SMALL_TOKENS, largeUsers: LARGE_USERS, small: smallPoints, heads },
  }
}

async function timed(kv: RedisKv, user: StoredUser, times: number[]): Promise<void> {
  const start = performance.now()
  await fetchUser(kv, user)
  times.push(performance.now() - start)
}

/** One caller fetches the small user again and again; one more per large user does the same. */
async function smallUser(kv: RedisKv, small: StoredUser, large: readonly StoredUser[]) {
  const times: number[] = []
  const others = large.map((user) => () => fetchUser(kv, user))
  await callsPerSecond([() => timed(kv, small, times), ...others], MS_PER_POINT)
  return { p50Ms: median(times), p99Ms: quantile(times, 0.99) }
}

/** ioredis looks at the option at each command. */
async function benchHeads(client: RedisClient, key: string) {
  const points = []
  for (const callers of HEAD_CALLERS) {
    const rates = { plain: [] as number[], autoPipelined: [] as number[] }
    const calls = Array.from({ length: callers }, () => () => client.hgetBuffer(key, HEAD_FIELD))
    for (let round = -1; round < HEAD_ROUNDS; round++) {
      for (const way of ['plain', 'autoPipelined'] as const) {
        client.options.enableAutoPipelining = way === 'autoPipelined'
        const rate = await callsPerSecond(calls, MS_PER_HEAD_ROUND)
        if (round >= 0) rates[way].push(rate)
      }
    }
    client.options.enableAutoPipelining = false
    const found = { plain: median(rates.plain), autoPipelined: median(rates.autoPipelined) }
    points.push({ callers, ...found })
  }
  return points
}
