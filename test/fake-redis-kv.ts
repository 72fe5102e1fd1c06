import { type DigestChain, PAGE_TOKENS } from '../cache/digest.js'
import type { UserHash } from '../cache/key.js'
import type { Head } from '../cache/page.js'
import type { RedisKv } from '../cache/redis-kv.js'

export type FakeRedisKv = RedisKv & {
  readonly calls: { head: number; fetch: number; write: number; forget: number }
  /** What the next calls do instead: undefined = work. */
  behave(how: (() => Promise<never>) | undefined): void
  entry(user: UserHash): DigestChain | undefined
}

/** Tier 2 in a map, which keeps no rows: rows of the right number are made up. */
export function createFakeRedisKv(): FakeRedisKv {
  const entries = new Map<UserHash, Head>()
  const calls = { head: 0, fetch: 0, write: 0, forget: 0 }
  let instead: (() => Promise<never>) | undefined
  let token = 0
  return {
    calls,
    behave(how) {
      instead = how
    },
    entry: (user) => entries.get(user)?.chain,
    async head(user) {
      calls.head++
      if (instead !== undefined) return instead()
      return entries.get(user)
    },
    async fetch(_user, _head, tokens) {
      calls.fetch++
      if (instead !== undefined) return instead()
      const layers = [{ k: new Uint8Array(tokens), v: new Uint8Array(tokens) }]
      return { tokens, layers, done: () => {} }
    },
    async write(user, chain, previous, rows) {
      calls.write++
      if (instead !== undefined) return instead()
      if (rows.tokens % PAGE_TOKENS !== chain.tokens % PAGE_TOKENS)
        throw new Error('not page by page')
      if (entries.get(user)?.raw !== previous?.raw) return 'conflict'
      token++
      entries.set(user, { chain, raw: Uint8Array.of(token) })
      return 'written'
    },
    async forget(user) {
      calls.forget++
      if (instead !== undefined) return instead()
      entries.delete(user)
    },
    close: async () => {},
  }
}
