import { unlessAborted } from '../model/deferred.js'
import type { Engine } from '../model/engine/engine.js'
import { type HistoryTokens, sliceTokens } from '../model/tokens.js'
import { coveredTokens, type DigestChain, digestChain, PAGE_TOKENS } from './digest.js'
import { createEpochs, type Epoch } from './epochs.js'
import type { Lease, MemoryCache } from './memory.js'

/** How a history's K/V came about. `stale`: a prefix was cached, the rest was appended. */
export type KvState = 'hit' | 'stale' | 'miss'

export type KvResult = {
  readonly lease: Lease
  readonly state: KvState
  readonly reusedTokens: number
  readonly prefilledTokens: number
}

/** Cache over the engine: finds, verifies, appends or prefills a user's K/V. */
export type KvCache = {
  /**
   * K/V of exactly `tokens`. Concurrent calls for one key and one history share one prefill. The
   * caller ends the lease. An aborted `signal` rejects with its reason and ends this caller's own
   * prefill; whoever waited for that one builds its own. Nothing is kept once `epoch` is over, which
   * begins here when absent.
   */
  obtain(key: string, tokens: HistoryTokens, signal?: AbortSignal, epoch?: Epoch): Promise<KvResult>
  /** K/V that is neither looked up nor kept. The caller ends the lease. */
  prefill(tokens: HistoryTokens, signal?: AbortSignal): Promise<KvResult>
  /** For whoever reads a history to obtain its K/V: a `forget` in between must hold for it. */
  begin(key: string): Epoch
  /** Drops what is kept, and keeps nothing of what began before. Leases stay valid. */
  forget(key: string): void
  forgetAll(): void
  /** How many tokens of the key are cached; 0 for none. */
  tokensOf(key: string): number
}

/** `appendIsExact`: the model's old K/V stays valid when tokens follow (the manifest's word). */
export function createKvCache(
  engine: Engine,
  memory: MemoryCache,
  appendIsExact: boolean,
): KvCache {
  const flights = new Map<string, Promise<void>>()
  const epochs = createEpochs()

  const build = async (
    key: string,
    tokens: HistoryTokens,
    chain: DigestChain,
    signal: AbortSignal | undefined,
    epoch: Epoch,
  ): Promise<KvResult> => {
    const keep = (handle: Lease['handle']) =>
      epoch.isCurrent() ? memory.store(key, handle, chain) : ownLease(engine, handle, chain)
    const cached = memory.lookup(key)
    const covered = cached === undefined ? 0 : coveredTokens(cached.chain, tokens, chain)
    // Where append is not exact, a prefix's K/V is not the shorter history's either.
    const isWhole = covered === tokens.length && covered === cached?.handle.tokens
    if (cached === undefined || covered === 0 || !(appendIsExact || isWhole)) {
      cached?.done()
      const handle = await engine.prefill(tokens, undefined, signal)
      return {
        lease: keep(handle),
        state: 'miss',
        reusedTokens: 0,
        prefilledTokens: tokens.length,
      }
    }
    if (isWhole) {
      return { lease: cached, state: 'hit', reusedTokens: covered, prefilledTokens: 0 }
    }
    try {
      const past = { handle: cached.handle, tokens: covered }
      const rest = sliceTokens(tokens, covered, tokens.length)
      const handle = await engine.prefill(rest, past, signal)
      return {
        // A late request, its history a beginning of the entry's as far as whole pages tell, must
        // not cost the next full one its K/V: the longer entry stays.
        lease:
          tokens.length < cached.handle.tokens && covered + PAGE_TOKENS > tokens.length
            ? ownLease(engine, handle, chain)
            : keep(handle),
        state: rest.length === 0 ? 'hit' : 'stale',
        reusedTokens: covered,
        prefilledTokens: rest.length,
      }
    } finally {
      cached.done()
    }
  }

  const obtain = async (
    key: string,
    tokens: HistoryTokens,
    signal: AbortSignal | undefined,
    epoch: Epoch,
  ): Promise<KvResult> => {
    const chain = digestChain(tokens)
    const flight = `${key} ${chain.whole}`
    // Whoever comes second waits, then finds the entry (or, if the first failed or was cancelled, builds it).
    for (let other = flights.get(flight); other !== undefined; other = flights.get(flight)) {
      await unlessAborted(other, signal)
    }
    const result = build(key, tokens, chain, signal, epoch)
    const settled = result.then(
      () => {},
      () => {},
    )
    flights.set(flight, settled)
    try {
      return await result
    } finally {
      if (flights.get(flight) === settled) flights.delete(flight)
    }
  }

  return {
    async prefill(tokens, signal) {
      const handle = await engine.prefill(tokens, undefined, signal)
      return {
        lease: ownLease(engine, handle, digestChain(tokens)),
        state: 'miss',
        reusedTokens: 0,
        prefilledTokens: tokens.length,
      }
    },
    async obtain(key, tokens, signal, since) {
      const epoch = since ?? epochs.begin(key)
      try {
        return await obtain(key, tokens, signal, epoch)
      } finally {
        if (since === undefined) epoch.end()
      }
    },
    begin: (key) => epochs.begin(key),
    forget(key) {
      epochs.forget(key)
      memory.forget(key)
    },
    forgetAll() {
      epochs.forgetAll()
      memory.clear()
    },
    tokensOf: (key) => memory.tokensOf(key),
  }
}

/** A lease on a handle that the cache does not keep. */
function ownLease(engine: Engine, handle: Lease['handle'], chain: DigestChain): Lease {
  return { handle, chain, done: () => engine.release(handle) }
}
