import { DEFAULT_EVENT_LIMITS, type EventLimits, type EventStore } from '../cache/events.js'
import { createMemoryEvents } from '../cache/events-memory.js'
import { createRedisEvents } from '../cache/events-redis.js'
import { BLOCK_MS, createForgets, type Forgets, type ForgetsOptions } from '../cache/forgets.js'
import type { UserHash } from '../cache/key.js'
import type { Tier2Event } from '../cache/open-tier2.js'
import { connectRedis } from '../cache/redis.js'
import type { RedisTarget } from '../cache/redis-url.js'
import type { StoreOptions } from './stores.js'

/** What a model does when a user, or everybody, must be forgotten. */
export type Forgetful = Pick<ForgetsOptions, 'onForget' | 'onGap'>

/** What belongs to the users, not to a model: one of it for all models of a process. */
export type SharedStores = {
  /**
   * The stored histories, for one more model; whoever shares them does not close them. Their oldest
   * events go in steps of the first model's slack, so that its windows stay where they are.
   */
  eventsFor(windowSlack: number): EventStore
  /** Tells every model of every replica whom to forget, until the one that opened it closes it. */
  openForgets(on: Forgetful): Forgets
  /** Those of all models that share the stores; what `add` adds goes when the function it gives is called. */
  readonly actions: {
    all(): ReadonlySet<string>
    add(actions: readonly string[]): () => void
  }
  close(): Promise<void>
}

/** For what is written or asked for; rankings wait far less (users.ts, cache/remote.ts). */
const STORE_TIMEOUT_MS = 1000

/** In Redis, or in this process where there is no `target`. */
export function shareStores(
  target: RedisTarget | undefined,
  options: StoreOptions,
  onEvent: (event: Tier2Event) => void,
): SharedStores {
  const members = new Set<Forgetful>()
  const vocabularies = new Set<readonly string[]>()
  const everybody: Forgetful = {
    onForget(user) {
      for (const { onForget } of members) onForget(user)
    },
    onGap() {
      for (const { onGap } of members) onGap()
    },
  }
  const redis = target === undefined ? undefined : connect(target, onEvent, everybody)
  const forgets = redis?.forgets ?? forgetHere(everybody)
  let events: EventStore | undefined
  return {
    eventsFor(windowSlack) {
      const limits = limitsOf(options, windowSlack)
      events ??=
        redis === undefined ? createMemoryEvents(limits) : createRedisEvents(redis.client, limits)
      return { ...events, close() {} }
    },
    openForgets(on) {
      members.add(on)
      return {
        ...forgets,
        async close() {
          members.delete(on)
        },
      }
    },
    actions: {
      all: () => new Set([...vocabularies].flat()),
      add(actions) {
        vocabularies.add(actions)
        return () => vocabularies.delete(actions)
      },
    },
    async close() {
      await forgets.close()
      redis?.client.disconnect()
      events?.close()
    },
  }
}

function connect(target: RedisTarget, onEvent: (event: Tier2Event) => void, on: Forgetful) {
  const open = (role: string, commandTimeoutMs: number) =>
    connectRedis(target, { role, commandTimeoutMs, onEvent })
  const client = open('events', STORE_TIMEOUT_MS)
  const listener = open('forgets', BLOCK_MS + STORE_TIMEOUT_MS)
  return { client, forgets: createForgets({ client, listener, ...on }) }
}

/** Where this process is the only replica. */
function forgetHere({ onForget }: Forgetful): Forgets {
  let received = 0
  return {
    async publish(user: UserHash) {
      received++
      onForget(user)
    },
    stats: () => ({ received, gaps: 0 }),
    async close() {},
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
