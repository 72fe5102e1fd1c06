import { deferred, pause } from '../model/deferred.js'
import { RankError } from '../model/errors.js'
import type { UserHash } from './key.js'
import { backoffMs, type RedisClient } from './redis.js'

/** Tells every replica whom to forget. */
export type Forgets = {
  /** Resolves when every replica that listens now or later will know. @throws {RankError} STORE_UNAVAILABLE */
  publish(user: UserHash): Promise<void>
  stats(): { readonly received: number; readonly gaps: number }
  /** Resolves when nothing is called any more. */
  close(): Promise<void>
}

export type ForgetsOptions = {
  readonly client: RedisClient
  /** Of its own, because it blocks; its command timeout is longer than `blockMs`. */
  readonly listener: RedisClient
  readonly onForget: (user: UserHash) => void
  /** Some may have been missed: everybody must be forgotten. Also once at the start. */
  readonly onGap: () => void
  /** How long one read waits. A stream that was deleted is noticed by then. */
  readonly blockMs?: number
}

const STREAM = 'peregrine:forgets'
/** Whoever was away for more of them forgets everybody. */
const KEPT = 10_000
const BATCH = 1000
export const BLOCK_MS = 5000

/**
 * A capped stream in Redis that each replica reads from where it stopped, so that a lost connection
 * loses nothing. Each replica begins with a mark of its own in the stream. While the entry that it
 * read last is still there, nothing behind it was trimmed or flushed away; once it is not, there is a gap.
 */
export function createForgets(options: ForgetsOptions): Forgets {
  const { client, listener, onForget, onGap, blockMs = BLOCK_MS } = options
  const closed = deferred<void>()
  let isClosed = false
  let received = 0
  let gaps = 0

  const mark = async () => {
    const id = await listener.xadd(STREAM, 'MAXLEN', '~', KEPT, '*', 'mark', '1')
    gaps++
    onGap()
    return id ?? undefined
  }

  /** Handles what came behind `last`; the id to go on from, undefined when `last` is gone. */
  const next = async (last: string): Promise<string | undefined> => {
    const found = await listener.xread('COUNT', BATCH, 'BLOCK', blockMs, 'STREAMS', STREAM, last)
    const [[, entries] = ['', []]] = found ?? []
    // Looked up after the read: what came in between is not lost, it is read next.
    if ((await listener.xrange(STREAM, last, last)).length === 0) return undefined
    for (const [, [name, user]] of entries) {
      if (name !== 'user' || user === undefined) continue
      received++
      // Written by `publish`, and by nobody else.
      onForget(user as UserHash)
    }
    return entries.at(-1)?.[0] ?? last
  }

  const listen = async () => {
    let last: string | undefined
    let failures = 0
    while (!isClosed) {
      try {
        last = last === undefined ? await mark() : await next(last)
        failures = 0
      } catch {
        failures++
        await pause(backoffMs(failures, Math.random()), closed.promise)
      }
    }
  }
  const listening = listen()

  return {
    async publish(user) {
      try {
        await client.xadd(STREAM, 'MAXLEN', '~', KEPT, '*', 'user', user)
      } catch {
        const message = 'Redis must tell all replicas to forget, got no answer: try again'
        throw new RankError('STORE_UNAVAILABLE', message)
      }
    },
    stats: () => ({ received, gaps }),
    async close() {
      isClosed = true
      closed.resolve()
      listener.disconnect()
      await listening
    },
  }
}
