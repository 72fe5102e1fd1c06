import { LRUCache } from 'lru-cache'
import type { Engine, KvHandle } from '../model/engine/engine.js'
import type { DigestChain } from './digest.js'

type Entry = {
  readonly handle: KvHandle
  readonly chain: DigestChain
  /** Requests that use the handle now; the cache itself counts as one while it holds the entry. */
  users: number
}

/** A handle in use: it stays valid until `done` is called, exactly once. */
export type Lease = {
  readonly handle: KvHandle
  readonly chain: DigestChain
  done(): void
}

export type MemoryCache = {
  /** The user's entry, if any, newest use first. A handle whose worker died is dropped. */
  lookup(key: string): Lease | undefined
  /** Takes ownership of `handle`; the user's former entry goes. */
  store(key: string, handle: KvHandle, chain: DigestChain): Lease
  forget(key: string): void
  /** Tokens of the user's entry, 0 for none; no use of it. */
  tokensOf(key: string): number
  stats(): { entries: number; kvBytes: number; maxKvBytes: number; evictions: number }
  clear(): void
}

/**
 * Tier 1: one K/V handle per key, least recently used first out once `maxKvBytes` are passed. A
 * handle is released when neither the cache nor a request holds it any more.
 */
export function createMemoryCache(
  engine: Pick<Engine, 'release' | 'isAlive'>,
  maxKvBytes: number,
): MemoryCache {
  let evictions = 0
  const drop = (entry: Entry) => {
    entry.users--
    if (entry.users === 0) engine.release(entry.handle)
  }
  const entries = new LRUCache<string, Entry>({
    // An entry larger than the whole budget is not kept: lru-cache then disposes it at once.
    maxSize: Math.max(1, maxKvBytes),
    sizeCalculation: ({ handle }) => Math.max(1, handle.bytes),
    dispose: (entry, _key, reason) => {
      if (reason === 'evict') evictions++
      drop(entry)
    },
  })
  const lease = (entry: Entry): Lease => {
    entry.users++
    return { handle: entry.handle, chain: entry.chain, done: () => drop(entry) }
  }
  return {
    lookup(key) {
      const entry = entries.get(key)
      if (entry === undefined) return undefined
      if (engine.isAlive(entry.handle)) return lease(entry)
      entries.delete(key)
      return undefined
    },
    store(key, handle, chain) {
      const entry: Entry = { handle, chain, users: 1 }
      const held = lease(entry)
      entries.set(key, entry)
      // lru-cache refuses an entry beyond maxSize without calling dispose.
      if (entries.peek(key) !== entry && entry.users === 2) drop(entry)
      return held
    },
    forget(key) {
      entries.delete(key)
    },
    tokensOf(key) {
      const entry = entries.peek(key)
      return entry !== undefined && engine.isAlive(entry.handle) ? entry.handle.tokens : 0
    },
    stats: () => ({
      entries: entries.size,
      kvBytes: entries.calculatedSize,
      maxKvBytes,
      evictions,
    }),
    clear: () => entries.clear(),
  }
}
