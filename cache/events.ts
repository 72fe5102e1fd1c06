import { RankError } from '../model/errors.js'
import type { HistoryEvent, StoredHistory } from '../model/request.js'
import { shortHash, type UserHash } from './key.js'

/** What an append came to: every event posted is stored, a duplicate, or too old to be kept. */
export type Appended = {
  /** Events that were not there before. */
  readonly stored: number
  /** Events that were there already, or came twice. */
  readonly duplicates: number
  /** Events that are there now. */
  readonly total: number
  /** The oldest ones, which had to go: of those before, or of these. */
  readonly trimmed: number
}

export type EventStoreStats =
  | {
      readonly kind: 'memory'
      readonly users: number
      readonly bytes: number
      readonly maxBytes: number
      readonly evictions: number
    }
  | { readonly kind: 'redis'; readonly isConnected: boolean }

/**
 * The main history of each user: a set of events, sorted by time, equal times by canonical text. So
 * its order is the same on every replica, in whatever order the events came.
 */
export type EventStore = {
  /**
   * Adds what is not there yet, all of it or nothing. The same idempotency key again gets the first
   * answer, and adds nothing.
   * @throws {RankError} STORE_UNAVAILABLE, INVALID_REQUEST for a key that came with other events before
   */
  append(
    user: UserHash,
    events: readonly HistoryEvent[],
    idempotencyKey?: string,
  ): Promise<Appended>
  /**
   * The `newest` events, or all; none for a user that nobody knows. Nobody changes what this gives: it may be the same
   * object again, by which readers know that nothing is new.
   * @throws {RankError} STORE_UNAVAILABLE
   */
  get(user: UserHash, newest?: number): Promise<StoredHistory>
  /** Answers to idempotency keys stay: a late retry must not bring events back. @throws {RankError} STORE_UNAVAILABLE */
  forget(user: UserHash): Promise<void>
  stats(): EventStoreStats
  close(): void
}

export type EventLimits = {
  readonly maxStoredEvents: number
  /**
   * Oldest events go in multiples of it, once there are `slack` more than `maxStoredEvents`: a window
   * whose start is counted in such steps from the oldest event stays where it is.
   */
  readonly slack: number
  /** Seconds after the last append until a user is forgotten. */
  readonly ttlSec: number
}

/** More events than any model that is known holds, until a month after the last one. */
export const DEFAULT_EVENT_LIMITS: EventLimits = {
  maxStoredEvents: 4096,
  slack: 256,
  ttlSec: 30 * 86_400,
}

/** An event as the stores keep it; `text` is its identity. */
export type StoredEvent = { readonly time: number; readonly text: string }

/** How long the answer to an idempotency key is remembered. */
export const IDEMPOTENCY_TTL_SEC = 86_400

/**
 * JSON that is equal for equal events: names in order, actions as a set. Absent actions stay absent:
 * "not observed" is not "nothing done".
 */
export function canonicalText({ time, item, actions, features = {} }: HistoryEvent): string {
  const named = Object.keys(features)
    .sort()
    .map((name) => `${JSON.stringify(name)}:${JSON.stringify(features[name])}`)
  return (
    `{"time":${JSON.stringify(time)},"item":${JSON.stringify(item)}` +
    (actions === undefined ? '' : `,"actions":${JSON.stringify([...new Set(actions)].sort())}`) +
    (named.length === 0 ? '' : `,"features":{${named.join()}}`) +
    '}'
  )
}

/** By time, then as Redis orders members of one score: by the bytes of the text. */
export function compareEvents(a: StoredEvent, b: StoredEvent): number {
  if (a.time !== b.time) return a.time - b.time
  return a.text === b.text ? 0 : Buffer.compare(Buffer.from(a.text), Buffer.from(b.text))
}

/** The events of one append: sorted, each once, no more than can stay. */
export type Batch = {
  readonly events: readonly StoredEvent[]
  readonly duplicates: number
  /** Too old to be stored at all. */
  readonly trimmed: number
  /** Of all events as they came, before any was left out. */
  readonly digest: string
}

export function toBatch(posted: readonly HistoryEvent[], limits: EventLimits): Batch {
  const all = posted.map((event): StoredEvent => {
    return { time: event.time, text: canonicalText(event) }
  })
  all.sort(compareEvents)
  const distinct = all.filter(({ text }, i) => text !== all[i - 1]?.text)
  const trimmed = Math.max(0, distinct.length - limits.maxStoredEvents - limits.slack)
  return {
    events: distinct.slice(trimmed),
    duplicates: all.length - distinct.length,
    trimmed,
    digest: shortHash(all.map(({ text }) => text).join('\n')),
  }
}

/** How many of `total` events, the oldest, have to go. */
export function excessOf(total: number, { maxStoredEvents, slack }: EventLimits): number {
  if (total <= maxStoredEvents + slack) return 0
  return Math.floor((total - maxStoredEvents) / slack) * slack
}

/** @throws {RankError} INVALID_REQUEST when the key's first append had other events */
export function checkSameAppend(first: string, now: string): void {
  if (first === now) return
  throw new RankError(
    'INVALID_REQUEST',
    'an idempotency key must always come with the same events, got others than the first time',
    { path: '/idempotencyKey' },
  )
}
