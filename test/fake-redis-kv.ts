import { type DigestChain, PAGE_TOKENS } from '../cache/digest.js'
import type { UserHash } from '../cache/key.js'
import type { Head } from '../cache/page.js'
import type { RedisKv } from '../cache/redis-kv.js'

export type FakeRedisKv = RedisKv & {
  /** Fetches that were given and are not done. */
  readonly lent: { count: number }
  readonly calls: { head: number; fetch: number; write: number; forget: number }
  /** What the next calls do instead: undefined = work. */
  behave(how: (() => Promise<never>) | undefined): void
  /** Heads are answered once the promise resolves. */
  holdHeads(until: Promise<void>): void
  entry(user: UserHash): DigestChain | undefined
}

/** Tier 2 in a map, which keeps no rows: planes of the right length are made up. */
export function createFakeRedisKv(): FakeRedisKv {
  const entries = new Map<UserHash, Head>()
  const lent = { count: 0 }
  const calls = { head: 0, fetch: 0, write: 0, forget: 0 }
  let instead: (() => Promise<never>) | undefined
  let token = 0
  let held: Promise<void> | undefined
  return {
    calls,
    lent,
    behave(how) {
      instead = how
    },
    holdHeads(until) {
      held = until
    },
    entry: (user) => entries.get(user)?.chain,
    async head(user) {
      calls.head++
      await held
      if (instead !== undefined) return instead()
      return entries.get(user)
    },
    async fetch(_user, _head, tokens) {
      calls.fetch++
      if (instead !== undefined) return instead()
      lent.count++
      const planes = [new Uint8Array(tokens), new Uint8Array(tokens)]
      return { tokens, codec: 'int8', planes, done: () => lent.count-- }
    },
    async write(user, chain, previous, rows) {
      calls.write++
      if (instead !== undefined) return instead()
      if (rows.tokens % PAGE_TOKENS !== chain.tokens % PAGE_TOKENS)
        throw new Error('not page by page')
      if (entries.get(user)?.raw !== previous?.raw) return 'conflict'
      token++
      entries.set(user, { chain, raw: Uint8Array.of(token), leftMs: 60_000 })
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
