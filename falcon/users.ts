import { createBreaker } from '../cache/breaker.js'
import type { EventStore } from '../cache/events.js'
import type { Forgets } from '../cache/forgets.js'
import { type UserHash, userHash } from '../cache/key.js'
import type { KvCache } from '../cache/kv.js'
import type { OpenTier2 } from '../cache/open-tier2.js'
import { unlessAborted, withinMs } from '../model/deferred.js'
import { RankError } from '../model/errors.js'
import { unknownAction } from '../model/events.js'
import type { StoredHistory, Warning } from '../model/request.js'
import type { Vocabulary } from '../model/vocabulary.js'
import { roomOf } from '../model/window.js'
import type { Ranker } from './types.js'

export type UsersOptions = {
  readonly events: EventStore
  readonly kv: KvCache
  /** K/V in Redis, where it is. */
  readonly tier2?: Pick<OpenTier2, 'forget' | 'tokensOf'>
  /** Absent where there are no other replicas. */
  readonly forgets?: Pick<Forgets, 'publish'>
  readonly vocabulary: Vocabulary
  /** Actions that events may name: those of all models of the process; the model's own when absent. */
  readonly knownActions?: () => ReadonlySet<string>
}

/** What a ranking reads: nothing, with a warning, where the store did not answer in time. */
export type ReadHistory = {
  readonly stored: StoredHistory
  readonly warnings: readonly Warning[]
}

export type Users = Pick<Ranker, 'appendEvents' | 'eventsOf' | 'kvOf' | 'forget'> & {
  /** Rejects only with the reason of an aborted signal. */
  read(user: UserHash, signal: AbortSignal | undefined): Promise<ReadHistory>
  /** Ends what runs in the background. */
  stop(): void
}

/** A ranking without history is far worse than one that is late by this; one that hangs is worse still. */
const READ_BUDGET_MS = 100

const UNAVAILABLE: ReadHistory = {
  stored: { events: [], older: 0 },
  warnings: [
    {
      code: 'HISTORY_UNAVAILABLE',
      message: 'the stored history could not be read in time: ranked without it',
      count: 1,
    },
  ],
}

/** What the service keeps of each user: the stored history and its K/V. */
export function createUsers(options: UsersOptions): Users {
  const { events, kv, tier2, forgets, vocabulary } = options
  const { config } = vocabulary
  const { knownActions = () => new Set(config.actions) } = options
  // More than the window can hold would be read and parsed for nothing.
  const room = roomOf(config)
  // While a store hangs, only the first few rankings wait for it.
  const breaker = createBreaker<'get'>({ probe: () => events.get(userHash('probe'), 1) })
  return {
    async read(user, signal) {
      if (breaker.isOpen()) return UNAVAILABLE
      const failed = () => {
        breaker.failed('get')
        return UNAVAILABLE
      }
      const reading = events.get(user, room).then(
        (stored): ReadHistory => {
          breaker.succeeded('get')
          return { stored, warnings: [] }
        },
        (error: unknown) => {
          if (isUnavailable(error)) return failed()
          throw error
        },
      )
      return withinMs(unlessAborted(reading, signal), READ_BUDGET_MS, failed)
    },
    stop: breaker.stop,
    async appendEvents(userId, posted, idempotencyKey) {
      const known = knownActions()
      posted.forEach(({ actions = [] }, e) => {
        actions.forEach((name, a) => {
          if (!known.has(name)) throw unknownAction(name, [...known], `/events/${e}/actions/${a}`)
        })
      })
      return events.append(userHash(userId), posted, idempotencyKey)
    },
    eventsOf: async (userId) => (await events.get(userHash(userId))).events,
    async kvOf(userId) {
      const user = userHash(userId)
      const redis = await tier2?.tokensOf(user, READ_BUDGET_MS)
      return { memory: kv.tokensOf(user), ...(redis !== undefined && { redis }) }
    },
    async forget(userId) {
      const user = userHash(userId)
      await events.forget(user)
      try {
        await tier2?.forget(user)
        // Not before: whoever hears of it may read the history again at once.
        await forgets?.publish(user)
      } finally {
        kv.forget(user)
      }
    },
  }
}

function isUnavailable(error: unknown): boolean {
  return error instanceof RankError && error.code === 'STORE_UNAVAILABLE'
}
