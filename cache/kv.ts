import { unlessAborted } from '../model/deferred.js'
import type { Engine, KvHandle, KvPast } from '../model/engine/engine.js'
import { type OnStep, timed } from '../model/step.js'
import { type HistoryTokens, sliceTokens } from '../model/tokens.js'
import { coveredTokens, type DigestChain, digestChain, PAGE_TOKENS } from './digest.js'
import { createEpochs, type Epoch } from './epochs.js'
import type { UserHash } from './key.js'
import type { Lease, MemoryCache } from './memory.js'
import type { createRemote } from './remote.js'
import type { WriteBehind } from './write-behind.js'

/** How a history's K/V came about. `stale`: a prefix was cached, the rest was appended. */
export type KvState = 'hit' | 'stale' | 'miss'

export type KvResult = {
  readonly lease: Lease
  readonly state: KvState
  /** Where the reused tokens came from; absent where none were. */
  readonly tier?: 1 | 2
  readonly reusedTokens: number
  readonly prefilledTokens: number
}

/** Cache over the engine: finds, verifies, fetches, appends or prefills a user's K/V. */
export type KvCache = {
  /**
   * K/V of exactly `tokens`. Concurrent calls for one user and one history share one prefill. The
   * caller ends the lease; K/V that is new is then written to tier 2. An aborted `signal` rejects with
   * its reason and ends this caller's own prefill; whoever waited for that one builds its own. Nothing
   * is kept once `epoch` is over, which begins here when absent.
   */
  obtain(
    user: UserHash,
    tokens: HistoryTokens,
    signal?: AbortSignal,
    epoch?: Epoch,
    onStep?: OnStep,
  ): Promise<KvResult>
  /** K/V that is neither looked up nor kept. The caller ends the lease. */
  prefill(tokens: HistoryTokens, signal?: AbortSignal, onStep?: OnStep): Promise<KvResult>
  /** For whoever reads a history to obtain its K/V: a `forget` in between must hold for it. */
  begin(user: UserHash): Epoch
  /** Drops what tier 1 keeps, and keeps nothing of what began before. Leases stay valid. */
  forget(user: UserHash): void
  forgetAll(): void
  /** How many of the user's tokens are in tier 1; 0 for none. */
  tokensOf(user: UserHash): number
}

export type KvCacheOptions = {
  readonly engine: Engine
  readonly memory: MemoryCache
  /** The model's old K/V stays valid when tokens follow (the manifest's word). */
  readonly appendIsExact: boolean
  /** Tier 2, where there is one. */
  readonly remote?: ReturnType<typeof createRemote>
  readonly writes?: Pick<WriteBehind, 'offer'>
}

/** The beginning of a history whose K/V is there already. */
type Past = { readonly handle: KvHandle; readonly tokens: number; readonly tier: 1 | 2 }

export function createKvCache(options: KvCacheOptions): KvCache {
  const { engine, memory, appendIsExact, remote, writes } = options
  const flights = new Map<string, Promise<void>>()
  /** Of tokens that come again, as those of a stored history do. */
  const chains = new WeakMap<HistoryTokens, DigestChain>()
  const epochs = createEpochs()

  const chainOf = (tokens: HistoryTokens): DigestChain => {
    const known = chains.get(tokens)
    if (known !== undefined) return known
    const chain = digestChain(tokens)
    chains.set(tokens, chain)
    return chain
  }

  /** A lease that goes on to the writer where the request lets go of it. */
  const writtenAfterUse = (user: UserHash, lease: Lease): Lease => {
    if (writes === undefined) return lease
    const epoch = epochs.begin(user)
    return {
      ...lease,
      done() {
        if (epoch.isCurrent()) writes.offer(user, lease)
        else lease.done()
        epoch.end()
      },
    }
  }

  const prefill = (
    tokens: HistoryTokens,
    past: KvPast | undefined,
    signal: AbortSignal | undefined,
    onStep: OnStep | undefined,
  ) =>
    timed(
      onStep,
      'kv.prefill',
      () => engine.prefill(tokens, past, signal),
      () => ({ tokens: tokens.length, past_tokens: past?.tokens ?? 0 }),
    )

  const build = async (
    user: UserHash,
    tokens: HistoryTokens,
    chain: DigestChain,
    signal: AbortSignal | undefined,
    epoch: Epoch,
    onStep: OnStep | undefined,
  ): Promise<KvResult> => {
    const startMs = performance.now()
    const cached = memory.lookup(user)
    const found = cached === undefined ? 0 : coveredTokens(cached.chain, tokens, chain)
    onStep?.('kv.lookup', startMs, performance.now(), { tokens: tokens.length, found })
    const isWhole = found === tokens.length && found === cached?.handle.tokens
    if (cached !== undefined && isWhole) return { ...reused(tokens, found, 1), lease: cached }
    // Where append is not exact, a prefix's K/V is not the shorter history's either.
    const here = appendIsExact ? found : 0
    let fetched: KvHandle | undefined
    try {
      const more = await remote?.(user, tokens, chain, here, signal, onStep)
      fetched = more?.handle
      const past: Past | undefined =
        more !== undefined
          ? { handle: more.handle, tokens: more.covered, tier: 2 }
          : cached !== undefined && here > 0
            ? { handle: cached.handle, tokens: here, tier: 1 }
            : undefined
      const rest = sliceTokens(tokens, past?.tokens ?? 0, tokens.length)
      const handle = await prefill(rest, past, signal, onStep)
      // A late request, its history a beginning of the entry's as far as whole pages tell, must
      // not cost the next full one its K/V: the longer entry stays.
      const isLate =
        cached !== undefined &&
        found > 0 &&
        tokens.length < cached.handle.tokens &&
        found + PAGE_TOKENS > tokens.length
      const isKept = epoch.isCurrent() && !(isLate && appendIsExact)
      const lease = isKept ? memory.store(user, handle, chain) : ownLease(engine, handle, chain)
      return {
        ...reused(tokens, past?.tokens ?? 0, past?.tier),
        lease: isKept && rest.length > 0 ? writtenAfterUse(user, lease) : lease,
      }
    } finally {
      if (fetched !== undefined) engine.release(fetched)
      cached?.done()
    }
  }

  const obtain = async (
    user: UserHash,
    tokens: HistoryTokens,
    signal: AbortSignal | undefined,
    epoch: Epoch,
    onStep: OnStep | undefined,
  ): Promise<KvResult> => {
    const chain = chainOf(tokens)
    const flight = `${user} ${chain.whole}`
    // Whoever comes second waits, then finds the entry (or, if the first failed or was cancelled, builds it).
    for (let other = flights.get(flight); other !== undefined; other = flights.get(flight)) {
      const settled = other
      const wait = () => unlessAborted(settled, signal)
      await timed(onStep, 'kv.wait', wait, () => ({ tokens: tokens.length }))
    }
    const result = build(user, tokens, chain, signal, epoch, onStep)
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
    async prefill(tokens, signal, onStep) {
      const handle = await prefill(tokens, undefined, signal, onStep)
      return { ...reused(tokens, 0), lease: ownLease(engine, handle, digestChain(tokens)) }
    },
    async obtain(user, tokens, signal, since, onStep) {
      const epoch = since ?? epochs.begin(user)
      try {
        return await obtain(user, tokens, signal, epoch, onStep)
      } finally {
        if (since === undefined) epoch.end()
      }
    },
    begin: epochs.begin,
    forget(user) {
      epochs.forget(user)
      memory.forget(user)
    },
    forgetAll() {
      epochs.forgetAll()
      memory.clear()
    },
    tokensOf: memory.tokensOf,
  }
}

function reused({ length }: HistoryTokens, covered: number, tier?: 1 | 2) {
  return {
    state: covered === 0 ? 'miss' : covered === length ? 'hit' : 'stale',
    ...(covered > 0 && tier !== undefined && { tier }),
    reusedTokens: covered,
    prefilledTokens: length - covered,
  } as const
}

/** A lease on a handle that the cache does not keep. */
function ownLease(engine: Engine, handle: KvHandle, chain: DigestChain): Lease {
  return { handle, chain, done: () => engine.release(handle) }
}
