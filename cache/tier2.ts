import { unlessAborted } from '../model/deferred.js'
import { RankError } from '../model/errors.js'
import { createBreaker } from './breaker.js'
import { type UserHash, userHash } from './key.js'
import type { Head } from './page.js'
import type { FetchedKv, RedisKv } from './redis-kv.js'

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
  ): Promise<FetchedKv | undefined>
  stats(): Tier2Stats
  stop(): void
}

/** The longest that a probe may take: nobody waits for it. */
const PROBE_MS = 1_000
/** So often as long as the caller that waited in vain waits the probe: slower is no use to anybody. */
const PROBE_PATIENCE = 2

/**
 * Calls to `kv` under a budget each and one circuit breaker for all.
 * @param onChange told when the circuit opens and closes
 */
export function createTier2(kv: RedisKv, onChange: (state: 'open' | 'closed') => void): Tier2 {
  const lookups = { found: 0, absent: 0, corrupt: 0, timeout: 0, error: 0, open: 0 }
  let readBytes = 0
  let probes = 0
  let probeMs = PROBE_MS
  const breaker = createBreaker<'head' | 'fetch'>({
    // Another user each time: in a cluster one that is away has a part of them only.
    probe: () =>
      within(probeMs, undefined, (signal) => kv.head(userHash(`probe ${probes++}`), signal)),
    onChange,
  })

  const attempt = async <T>(
    call: 'head' | 'fetch',
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
      breaker.succeeded(call)
      lookups[value === undefined ? 'absent' : 'found']++
      return value
    } catch (error) {
      if (signal?.aborted) throw signal.reason
      const code = error instanceof RankError ? error.code : undefined
      if (code === 'KV_CORRUPT') {
        // Redis works; it is what lies in it that does not.
        lookups.corrupt++
        breaker.succeeded(call)
        return undefined
      }
      const isLate = code === 'DEADLINE_EXCEEDED'
      lookups[isLate ? 'timeout' : 'error']++
      // A fetch's budget is for far more bytes than a probe reads.
      if (isLate && call === 'head') probeMs = Math.min(PROBE_MS, PROBE_PATIENCE * budgetMs)
      breaker.failed(call)
      return undefined
    }
  }

  return {
    head: (user, budgetMs, signal) =>
      attempt('head', budgetMs, signal, async (s) => {
        const head = await kv.head(user, s)
        return head?.chain.tokens === 0 ? undefined : head
      }),
    async fetch(user, head, tokens, budgetMs, signal) {
      let fetched: FetchedKv | undefined
      let found: FetchedKv | undefined
      try {
        found = await attempt('fetch', budgetMs, signal, async (s) => {
          fetched = await kv.fetch(user, head, tokens, s)
          for (const { byteLength } of fetched.planes) readBytes += byteLength
          // Too late for whoever asked, who is gone by now.
          if (s.aborted) fetched.done()
          return fetched.tokens === 0 ? undefined : fetched
        })
        return found
      } finally {
        if (found === undefined) fetched?.done()
      }
    },
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
  // An answer that has come by then counts: in a turn of the event loop timers are before input.
  const timer = setTimeout(() => setImmediate(() => controller.abort(late)), ms)
  try {
    return await unlessAborted(work(controller.signal), controller.signal)
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', onAbort)
  }
}
