import type { KvCodecName, KvPrecision } from '../model/engine/codec/graphs.js'
import type { WireError } from '../model/errors.js'
import type { PageShape } from './page.js'
import type { RedisEvent } from './redis.js'
import type { FetchedKv, RedisKv } from './redis-kv.js'
import type { RedisTarget } from './redis-url.js'

/** What tier 2's thread is started with. */
export type RedisThreadOptions = {
  readonly target: RedisTarget
  /** Connections that reads take turns on; writes have one more. */
  readonly connections: number
  readonly codec: KvCodecName
  /** Of the engine's K/V. */
  readonly precision: KvPrecision
  /** Of the bundle. */
  readonly version: string
  readonly shape: PageShape
  readonly appendIsExact: boolean
  readonly ttlMs: number
}

/** Calls that go to the thread; `signal` stays behind, `cancel` stands for it. */
export type Call =
  | { readonly method: 'head'; readonly args: Parameters<RedisKv['head']> }
  | { readonly method: 'fetch'; readonly args: Parameters<RedisKv['fetch']> }
  | { readonly method: 'write'; readonly args: Parameters<RedisKv['write']> }
  | { readonly method: 'forget'; readonly args: Parameters<RedisKv['forget']> }

/** What a fetch gives, in memory that stays the thread's: `spare` with this id is its `done`. */
export type LentKv = Omit<FetchedKv, 'done'> & { readonly id: number }

export type ToThread =
  | { readonly kind: 'call'; readonly id: number; readonly call: Call }
  | { readonly kind: 'cancel'; readonly id: number }
  /** What the fetch of this id gave is read by nobody any more. */
  | { readonly kind: 'spare'; readonly id: number }
  | { readonly kind: 'close' }

export type ThreadEvent =
  | RedisEvent
  /** The thread itself ended; another one is started. */
  | { readonly kind: 'redisThreadCrash'; readonly error: string }

export type FromThread =
  | { readonly kind: 'ready' }
  | { readonly kind: 'done'; readonly id: number; readonly value: unknown }
  | { readonly kind: 'error'; readonly id: number; readonly error: WireError }
  | { readonly kind: 'event'; readonly event: RedisEvent }
