import { DEFAULT_EVENT_LIMITS, type EventLimits, type EventStore } from '../cache/events.js'
import { createMemoryEvents } from '../cache/events-memory.js'
import { createRedisEvents } from '../cache/events-redis.js'
import { BLOCK_MS, createForgets } from '../cache/forgets.js'
import {
  type KvCodecName,
  type OpenTier2,
  openTier2,
  type Tier2Event,
} from '../cache/open-tier2.js'
import { connectRedis } from '../cache/redis.js'
import { parseRedisUrl, type RedisTarget } from '../cache/redis-url.js'
import type { Engine } from '../model/engine/engine.js'
import type { Manifest } from '../model/manifest.js'
import type { RankerOptions } from './rank.js'

export type StoreOptions = {
  /** Where K/V and stored histories are, for all replicas; in this process when absent or ''. */
  readonly redisUrl?: string
  /** How K/V is written there; `fp16` when absent. */
  readonly redisCodec?: KvCodecName
  /** That K/V is read by. */
  readonly redisConnections?: number
  /** Seconds after its last write until K/V in Redis goes; a day when absent. */
  readonly kvTtlSec?: number
  readonly maxStoredEvents?: number
  /** Seconds after the last event until a user is forgotten. */
  readonly eventsTtlSec?: number
}

export type Stores = Pick<RankerOptions, 'openForgets'> & {
  readonly events: EventStore
  readonly tier2?: OpenTier2
  /** For a ranker that never came to be; one that did closes them itself. */
  close(): Promise<void>
}

type Parts = {
  readonly manifest: Manifest
  readonly engine: Engine
  /** In events. */
  readonly windowSlack: number
  readonly onEvent: (event: Tier2Event) => void
}

/** For what is written or asked for; rankings wait far less (users.ts, cache/remote.ts). */
const STORE_TIMEOUT_MS = 1000
/** More gained nothing: one thread reads them all (bench/results/kv.md). */
const DEFAULT_CONNECTIONS = 1
const DEFAULT_KV_TTL_SEC = 86_400

/** @throws {RankError} CONFIG_INVALID for a URL that is none */
export function redisTarget({ redisUrl = '' }: StoreOptions): RedisTarget | undefined {
  return redisUrl === '' ? undefined : parseRedisUrl(redisUrl)
}

/** Where users' events and K/V are kept behind this process. Redis may come later, or never. */
export async function openStores(
  target: RedisTarget | undefined,
  options: StoreOptions,
  { manifest, engine, windowSlack, onEvent }: Parts,
): Promise<Stores> {
  const { redisCodec = 'fp16', redisConnections, kvTtlSec } = options
  const limits = limitsOf(options, windowSlack)
  if (target === undefined) return { events: createMemoryEvents(limits), close: async () => {} }
  const tier2 = await openTier2(
    {
      target,
      codec: redisCodec,
      connections: redisConnections ?? DEFAULT_CONNECTIONS,
      ttlMs: 1000 * (kvTtlSec ?? DEFAULT_KV_TTL_SEC),
    },
    manifest,
    engine,
    onEvent,
  )
  const connect = (role: string, commandTimeoutMs: number) =>
    connectRedis(target, { role, commandTimeoutMs, onEvent })
  const client = connect('events', STORE_TIMEOUT_MS)
  const listener = connect('forgets', BLOCK_MS + STORE_TIMEOUT_MS)
  return {
    events: createRedisEvents(client, limits),
    openForgets: (on) => createForgets({ client, listener, ...on }),
    tier2,
    async close() {
      client.disconnect()
      listener.disconnect()
      await tier2.close()
    },
  }
}

/**
 * Stored events go in multiples of the window's slack: what is counted in such steps from the oldest
 * event then stays where it is.
 */
function limitsOf({ maxStoredEvents, eventsTtlSec }: StoreOptions, slack: number): EventLimits {
  const { maxStoredEvents: most, ttlSec } = DEFAULT_EVENT_LIMITS
  const kept = maxStoredEvents ?? most
  const step = Math.max(1, slack)
  return {
    maxStoredEvents: kept,
    slack: Math.max(1, Math.ceil(kept / 16 / step)) * step,
    ttlSec: eventsTtlSec ?? ttlSec,
  }
}
