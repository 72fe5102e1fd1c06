import type { EventStore } from '../cache/events.js'
import type { Forgets } from '../cache/forgets.js'
import { type UserHash, userHash } from '../cache/key.js'
import type { KvCache } from '../cache/kv.js'
import { unlessAborted, withinMs } from '../model/deferred.js'
import { RankError } from '../model/errors.js'
import type { StoredHistory, Warning } from '../model/request.js'
import { roomOf, unknownAction } from '../model/sequence.js'
import type { Vocabulary } from '../model/vocabulary.js'
import type { Ranker } from './types.js'

export type UsersOptions = {
  readonly events: EventStore
  readonly kv: KvCache
  /** Absent where there are no other replicas. */
  readonly forgets?: Pick<Forgets, 'publish'>
  readonly vocabulary: Vocabulary
}

/** What a ranking reads: nothing, with a warning, where the store did not answer in time. */
export type ReadHistory = {
  readonly stored: StoredHistory
  readonly warnings: readonly Warning[]
}

export type Users = Pick<Ranker, 'appendEvents' | 'eventsOf' | 'kvOf' | 'forget'> & {
  /** Rejects only with the reason of an aborted signal. */
  read(user: UserHash, signal: AbortSignal | undefined): Promise<ReadHistory>
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
export function createUsers({ events, kv, forgets, vocabulary }: UsersOptions): Users {
  const { actionBits, config } = vocabulary
  // More than the window can hold would be read and parsed for nothing.
  const room = roomOf(config)
  return {
    async read(user, signal) {
      const reading = events.get(user, room).then(
        (stored): ReadHistory => ({ stored, warnings: [] }),
        (error: unknown) => {
          if (isUnavailable(error)) return UNAVAILABLE
          throw error
        },
      )
      return withinMs(unlessAborted(reading, signal), READ_BUDGET_MS, () => UNAVAILABLE)
    },
    async appendEvents(userId, posted, idempotencyKey) {
      posted.forEach(({ actions = [] }, e) => {
        actions.forEach((name, a) => {
          if (!actionBits.has(name)) throw unknownAction(name, config, `/events/${e}/actions/${a}`)
        })
      })
      return events.append(userHash(userId), posted, idempotencyKey)
    },
    eventsOf: async (userId) => (await events.get(userHash(userId))).events,
    kvOf: async (userId) => ({ memory: kv.tokensOf(userHash(userId)) }),
    async forget(userId) {
      const user = userHash(userId)
      await events.forget(user)
      try {
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
