import { LRUCache } from 'lru-cache'
import type { HistoryEvent, StoredHistory } from '../model/request.js'
import {
  type Appended,
  checkSameAppend,
  compareEvents,
  type EventLimits,
  type EventStore,
  excessOf,
  IDEMPOTENCY_TTL_SEC,
  type StoredEvent,
  toBatch,
} from './events.js'
import { appendKey, type UserHash } from './key.js'

export type MemoryEventsOptions = EventLimits & {
  /** Estimated; the least recently used users go. 64 MiB when absent: ten thousand users of 20 events. */
  readonly maxBytes?: number
  /** Milliseconds, monotonic. */
  readonly now?: () => number
}

type Kept = StoredEvent & { readonly event: HistoryEvent }
const NONE: readonly Kept[] = []

type Answer = Appended & { readonly digest: string }

/** Of a user and of an event beside its text, as V8 keeps them: an order of magnitude. */
const USER_BYTES = 300
const EVENT_BYTES = 300
const DEFAULT_BYTES = 64 * 2 ** 20
/** Answers that retries may still ask for. */
const MAX_ANSWERS = 10_000

/** Stored histories of a single process that has no Redis. They end with it. */
export function createMemoryEvents(options: MemoryEventsOptions): EventStore {
  const { maxBytes = DEFAULT_BYTES, ttlSec, now = () => performance.now() } = options
  let evictions = 0
  const perf = { now }
  const users = new LRUCache<UserHash, readonly Kept[]>({
    maxSize: maxBytes,
    sizeCalculation: sizeOf,
    ttl: ttlSec * 1000,
    ttlResolution: 0,
    perf,
    dispose: (_, __, reason) => {
      if (reason === 'evict') evictions++
    },
  })
  const answers = new LRUCache<string, Answer>({
    max: MAX_ANSWERS,
    ttl: IDEMPOTENCY_TTL_SEC * 1000,
    ttlResolution: 0,
    perf,
  })

  /** What was read last of each list: it is given again until another takes its place. */
  const reads = new WeakMap<readonly Kept[], { newest: number; stored: StoredHistory }>()

  const append = (user: UserHash, posted: readonly HistoryEvent[]): Answer => {
    const { events, duplicates, trimmed, digest } = toBatch(posted, options)
    const before = users.get(user) ?? []
    const after = merge(before, events)
    const stored = after.length - before.length
    const excess = excessOf(after.length, options)
    users.set(user, after.slice(excess))
    return {
      stored,
      duplicates: duplicates + events.length - stored,
      total: after.length - excess,
      trimmed: trimmed + excess,
      digest,
    }
  }

  return {
    async append(user, posted, idempotencyKey) {
      const key = idempotencyKey === undefined ? undefined : appendKey(user, idempotencyKey)
      const first = key === undefined ? undefined : answers.get(key)
      if (first !== undefined) checkSameAppend(first.digest, toBatch(posted, options).digest)
      const { digest, ...answer } = first ?? append(user, posted)
      if (key !== undefined && first === undefined) answers.set(key, { digest, ...answer })
      return answer
    },
    async get(user, newest = Number.POSITIVE_INFINITY) {
      const kept = users.get(user) ?? NONE
      const known = reads.get(kept)
      if (known?.newest === newest) return known.stored
      const older = Math.max(0, kept.length - newest)
      const stored = { events: kept.slice(older).map(({ event }) => event), older }
      reads.set(kept, { newest, stored })
      return stored
    },
    async forget(user) {
      users.delete(user)
    },
    stats: () => ({
      kind: 'memory',
      users: users.size,
      bytes: users.calculatedSize,
      maxBytes,
      evictions,
    }),
    close() {
      users.clear()
      answers.clear()
    },
  }
}

/** Two sorted lists as one; what is in both comes once, as it was. */
function merge(before: readonly Kept[], events: readonly StoredEvent[]): readonly Kept[] {
  const merged: Kept[] = []
  let next = 0
  for (const { time, text } of events) {
    let old = before[next]
    while (old !== undefined && compareEvents(old, { time, text }) < 0) {
      merged.push(old)
      old = before[++next]
    }
    // An event that is there already is pushed when its turn comes.
    if (old?.text !== text) merged.push({ time, text, event: JSON.parse(text) })
  }
  for (; next < before.length; next++) {
    const old = before[next]
    if (old !== undefined) merged.push(old)
  }
  return merged
}

/** The text is there once as it is and once parsed. */
function sizeOf(events: readonly Kept[]): number {
  return events.reduce((bytes, { text }) => bytes + EVENT_BYTES + 3 * text.length, USER_BYTES)
}
