import { unlessAborted } from '../model/deferred.js'
import { RankError } from '../model/errors.js'
import { createBreaker } from './breaker.js'
import { type UserHash, userHash } from './key.js'
import type { Head } from './page.js'
import type { FetchedRows, RedisKv } from './redis-kv.js'

/** How a call to tier 2 ended; `open`: not even tried. */
export type Tier2Outcome = 'found' | 'absent' | 'corrupt' | 'timeout' | 'error' | 'open'

export type Tier2Stats = {
  /** Lookups by outcome since the start. */
  readonly lookups: Readonly<Record<Tier2Outcome, number>>
  readonly isOpen: boolean
  readonly opened: number
  readonly readBytes: number
}

/** Tier 2 as a cache may be: it answers in time or not at all, and never rejects but for the caller's signal. */
export type Tier2 = {
  head(user: UserHash, budgetMs: number, signal?: AbortSignal): Promise<Head | undefined>
  /** Undefined also where not one page is left. Else the caller calls `done`. */
  fetch(
    user: UserHash,
    head: Head,
    tokens: number,
    budgetMs: number,
    signal?: AbortSignal,
  ): Promise<FetchedRows | undefined>
  stats(): Tier2Stats
  stop(): void
}

/** A probe has time: nobody waits for it. */
const PROBE_MS = 1_000

/**
 * Calls to `kv` under a budget each and one circuit breaker for all.
 * @param onChange told when the circuit opens and closes
 */
export function createTier2(kv: RedisKv, onChange: (state: 'open' | 'closed') => void): Tier2 {
  const lookups = { found: 0, absent: 0, corrupt: 0, timeout: 0, error: 0, open: 0 }
  let readBytes = 0
  const breaker = createBreaker({
    probe: () => within(PROBE_MS, undefined, (signal) => kv.head(userHash('probe'), signal)),
    onChange,
  })

  const attempt = async <T>(
    budgetMs: number,
    signal: AbortSignal | undefined,
    work: (signal: AbortSignal) => Promise<T | undefined>,
  ): Promise<T | undefined> => {
    if (breaker.isOpen()) {
      lookups.open++
      return undefined
    }
    try {
      const value = await within(budgetMs, signal, work)
      breaker.succeeded()
      lookups[value === undefined ? 'absent' : 'found']++
      return value
    } catch (error) {
      if (signal?.aborted) throw signal.reason
      const code = error instanceof RankError ? error.code : undefined
      if (code === 'KV_CORRUPT') {
        // Redis works; it is what lies in it that does not.
        lookups.corrupt++
        breaker.succeeded()
        return undefined
      }
      lookups[code === 'DEADLINE_EXCEEDED' ? 'timeout' : 'error']++
      breaker.failed()
      return undefined
    }
  }

  return {
    head: (user, budgetMs, signal) =>
      attempt(budgetMs, signal, async (s) => {
        const head = await kv.head(user, s)
        return head?.chain.tokens === 0 ? undefined : head
      }),
    fetch: (user, head, tokens, budgetMs, signal) =>
      attempt(budgetMs, signal, async (s) => {
        const rows = await kv.fetch(user, head, tokens, s)
        for (const { k, v } of rows.layers) readBytes += k.byteLength + v.byteLength
        return rows.tokens === 0 ? undefined : rows
      }),
    stats: () => ({
      lookups: { ...lookups },
      isOpen: breaker.isOpen(),
      opened: breaker.opened(),
      readBytes,
    }),
    stop: breaker.stop,
  }
}

/** `work`, ended with DEADLINE_EXCEEDED after `ms`, or with the signal's reason. */
async function within<T>(
  ms: number,
  signal: AbortSignal | undefined,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const controller = new AbortController()
  const onAbort = () => controller.abort(signal?.reason)
  if (signal?.aborted) onAbort()
  else signal?.addEventListener('abort', onAbort, { once: true })
  const late = new RankError('DEADLINE_EXCEEDED', `tier 2 did not answer within ${ms} ms`)
  const timer = setTimeout(() => controller.abort(late), ms)
  try {
    return await unlessAborted(work(controller.signal), controller.signal)
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', onAbort)
  }
}
