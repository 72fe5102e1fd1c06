import type { KvPages } from '../model/engine/engine.js'
import { RankError } from '../model/errors.js'
import type { UserHash } from './key.js'
import type { Lease } from './memory.js'
import { type RedisKv, type WriteOutcome, writeStart } from './redis-kv.js'

/** What waits to be written keeps its K/V in memory: no more than this, in bytes of tier 1. */
const MAX_QUEUED_BYTES = 256 * 2 ** 20
/** After a write that failed nothing is written for so long: Redis is full, read-only, or away. */
const PAUSE_MS = 1_000

export type WriteStats = Readonly<
  Record<WriteOutcome | 'current' | 'dropped' | 'replaced' | 'error' | 'paused', number>
> & { readonly queued: number; readonly queuedBytes: number; readonly bytes: number }

export type WriteBehind = {
  /** Takes the lease: the K/V is written when those before it are, and then let go. */
  offer(user: UserHash, lease: Lease): void
  /** Whatever of this user's waits, or is not yet on its way, is not written. */
  forget(user: UserHash): void
  forgetAll(): void
  stats(): WriteStats
  /** Waits for the write under way; drops the others. */
  close(): Promise<void>
}

export type WriteBehindOptions = {
  readonly kv: RedisKv
  readonly appendIsExact: boolean
  /** Rows of the handle from token `start` on. */
  readonly rowsOf: (lease: Lease, start: number) => Promise<KvPages>
  /** Milliseconds, monotonic. */
  readonly now?: () => number
}

/**
 * Writes K/V to tier 2 after the replies, one user at a time, the newest state of each user only.
 * What does not fit the queue is dropped, oldest first: a cache may forget, a reply must not wait.
 */
export function createWriteBehind(options: WriteBehindOptions): WriteBehind {
  const { kv, appendIsExact, rowsOf, now = () => performance.now() } = options
  const queue = new Map<UserHash, Lease>()
  const counts = {
    ...{ written: 0, conflict: 0, lost: 0, current: 0 },
    ...{ dropped: 0, replaced: 0, error: 0, paused: 0 },
  }
  let queuedBytes = 0
  let bytes = 0
  let pausedUntil = Number.NEGATIVE_INFINITY
  let running: Promise<void> | undefined
  /** Whose K/V is being written; undefined once that user was forgotten. */
  let writing: UserHash | undefined
  let isClosed = false

  const take = (user: UserHash): Lease | undefined => {
    const lease = queue.get(user)
    if (lease === undefined) return undefined
    queue.delete(user)
    queuedBytes -= lease.handle.bytes
    return lease
  }
  const drop = (user: UserHash, why: 'dropped' | 'replaced') => {
    const lease = take(user)
    if (lease === undefined) return
    counts[why]++
    lease.done()
  }

  const write = async (user: UserHash, lease: Lease): Promise<keyof typeof counts> => {
    const { chain } = lease
    writing = user
    const previous = await kv.head(user).catch(ignoreCorrupt)
    // The head may be the mark of the forgetting itself; one from before it makes a conflict.
    if (writing === undefined) return 'dropped'
    const start = writeStart(previous, chain, appendIsExact)
    if (start === undefined) return 'current'
    // The engine let go of it, or its worker died: no fault of Redis.
    const rows = await rowsOf(lease, start).catch(() => undefined)
    if (rows === undefined) return 'dropped'
    const { layers } = rows
    for (const { k, v } of layers) bytes += k.byteLength + v.byteLength
    return kv.write(user, chain, previous, { tokens: chain.tokens - start, layers })
  }

  const drain = async () => {
    // After whatever is to be done now, above all the reply that offered this.
    await new Promise(setImmediate)
    for (const user of queue.keys()) {
      const lease = take(user)
      if (lease === undefined) continue
      try {
        counts[await write(user, lease)]++
      } catch {
        counts.error++
        pausedUntil = now() + PAUSE_MS
      } finally {
        lease.done()
      }
      if (now() < pausedUntil) for (const other of [...queue.keys()]) drop(other, 'dropped')
    }
    running = undefined
  }

  return {
    offer(user, lease) {
      drop(user, 'replaced')
      if (isClosed || now() < pausedUntil) {
        counts.paused++
        lease.done()
        return
      }
      queue.set(user, lease)
      queuedBytes += lease.handle.bytes
      for (const oldest of queue.keys()) {
        if (queuedBytes <= MAX_QUEUED_BYTES) break
        drop(oldest, 'dropped')
      }
      if (queue.size > 0) running ??= drain()
    },
    forget(user) {
      drop(user, 'dropped')
      if (writing === user) writing = undefined
    },
    forgetAll() {
      for (const user of [...queue.keys()]) drop(user, 'dropped')
      writing = undefined
    },
    stats: () => ({ ...counts, queued: queue.size, queuedBytes, bytes }),
    async close() {
      isClosed = true
      for (const user of [...queue.keys()]) drop(user, 'dropped')
      await running
    },
  }
}

/** A corrupt entry was deleted by who found it: there is none. */
function ignoreCorrupt(error: unknown): undefined {
  if (error instanceof RankError && error.code === 'KV_CORRUPT') return
  throw error
}
