// How long tier-2 hits keep the calling thread's event loop, with tier 2 in a thread of its own and
// without. Called by bench/run-kv.ts.
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { setTimeout as delay } from 'node:timers/promises'
import type { RedisKv } from '../cache/redis-kv.js'
import { encodedKv } from '../cache/remote.js'
import { randomHistory } from '../falcon/calibrate.js'
import { createEngine } from '../model/engine/create.js'
import type { Engine } from '../model/engine/engine.js'
import type { Bundle } from '../model/manifest.js'
import { createRandom } from '../model/random.js'
import { openInThread, openThread, type StoredUser, storeUser } from './kv-user.js'
import { mainThreadMs } from './main-thread.js'
import type { BenchRedis } from './redis.js'
import { median } from './stats.js'

const CODEC = 'fp16'
const HITS = 10
const ROUNDS = 5
const RESOLUTION_MS = 1
/** Between hits, for the loop's own timers. */
const PAUSE_MS = 10
const NS_PER_MS = 1e6

export type EventLoopPoint = {
  readonly where: 'thread' | 'in-thread' | 'idle'
  readonly hits: number
  /** Delay of a timer of 1 ms, that period included; medians over the rounds. */
  readonly p50Ms: number
  readonly p99Ms: number
  readonly maxMs: number
  /** Processor time of the thread per hit; NaN where the system does not say. */
  readonly cpuMsPerHit: number
}

export async function benchEventLoop(
  bundle: Bundle,
  redis: BenchRedis,
  log: (line: string) => void,
): Promise<readonly EventLoopPoint[]> {
  const { manifest } = bundle
  const { maxTokens } = manifest.config
  const engine = await createEngine({ bundle, workers: 1 })
  const thread = await openThread(redis, manifest, CODEC, 1)
  const inThread = await openInThread(redis, manifest, CODEC)
  const history = randomHistory(manifest, maxTokens, createRandom(6))
  const stored = await storeUser(inThread, engine, 'event loop', history, maxTokens)
  const ways = {
    idle: async () => {},
    thread: () => hit(thread, engine, stored),
    'in-thread': () => hit(inThread, engine, stored),
  } as const
  const rounds = new Map<EventLoopPoint['where'], Omit<EventLoopPoint, 'where' | 'hits'>[]>()
  for (let round = -1; round < ROUNDS; round++) {
    for (const where of ['idle', 'thread', 'in-thread'] as const) {
      const measured = await measure(ways[where])
      if (round >= 0) rounds.set(where, [...(rounds.get(where) ?? []), measured])
    }
  }
  await thread.close()
  await inThread.close()
  await engine.close()
  return [...rounds].map(([where, all]) => {
    const point = {
      ...{ where, hits: HITS * ROUNDS },
      p50Ms: median(all.map(({ p50Ms }) => p50Ms)),
      p99Ms: median(all.map(({ p99Ms }) => p99Ms)),
      maxMs: median(all.map(({ maxMs }) => maxMs)),
      cpuMsPerHit: median(all.map(({ cpuMsPerHit }) => cpuMsPerHit)),
    }
    log(
      `event loop, ${where}: p50 ${point.p50Ms.toFixed(1)}, p99 ${point.p99Ms.toFixed(1)}, max ${point.maxMs.toFixed(1)} ms, processor ${point.cpuMsPerHit.toFixed(1)} ms per hit`,
    )
    return point
  })
}

async function measure(run: () => Promise<void>) {
  const histogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS })
  const before = mainThreadMs(process.pid)
  histogram.enable()
  for (let i = 0; i < HITS; i++) {
    await run()
    await delay(PAUSE_MS)
  }
  histogram.disable()
  const after = mainThreadMs(process.pid)
  return {
    p50Ms: histogram.percentile(50) / NS_PER_MS,
    p99Ms: histogram.percentile(99) / NS_PER_MS,
    maxMs: histogram.max / NS_PER_MS,
    cpuMsPerHit: (after - before) / HITS,
  }
}

async function hit(kv: RedisKv, engine: Engine, { user, history }: StoredUser): Promise<void> {
  const head = await kv.head(user)
  if (head === undefined) throw new Error('the head went away')
  const fetched = await kv.fetch(user, head, history.length)
  engine.release(await engine.importKv(encodedKv(fetched, history)))
  fetched.done()
}
