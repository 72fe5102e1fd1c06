import type { Engine, KvHandle, KvPages } from '../model/engine/engine.js'
import { type OnStep, timed } from '../model/step.js'
import type { HistoryTokens } from '../model/tokens.js'
import type { Costs } from './costs.js'
import { coveredTokens, type DigestChain } from './digest.js'
import type { UserHash } from './key.js'
import type { RemoteRows } from './redis-kv.js'
import type { Tier2 } from './tier2.js'

/** Fetched rows of a history's first tokens, as an engine takes them. */
export function kvPages({ tokens, layers }: RemoteRows, history: HistoryTokens): KvPages {
  return { tokens, layers, times: history.times.subarray(0, tokens) }
}

/** K/V of a history's first tokens, as the engine has it now. The caller releases it. */
export type RemotePast = { readonly handle: KvHandle; readonly covered: number }

/** On top of what a fetch should take: a pause of the garbage collector or a busy core. */
const PATIENCE_MS = 5
/** So often as long as it should take may a fetch take, before its K/V is computed. */
const PATIENCE = 3

export type RemoteOptions = {
  readonly tier2: Tier2
  readonly engine: Pick<Engine, 'importKv' | 'release'>
  readonly costs: Pick<Costs, 'prefillMs' | 'fetchMs' | 'observeFetch'>
  readonly appendIsExact: boolean
  /** Bytes of one token's K/V in the codec. */
  readonly tokenBytes: number
  /** Fetches whatever it costs: for benches and for `--kv always`. */
  readonly always: boolean
  /** Milliseconds, monotonic. */
  readonly now?: () => number
}

/**
 * Looks for more of a history's K/V in tier 2 than the `covered` tokens that are here, where that should
 * be cheaper than computing it. Gives nothing rather than late: after three times what it should take,
 * or what computing costs, and a few milliseconds.
 */
export function createRemote(options: RemoteOptions) {
  const { tier2, engine, costs, appendIsExact, tokenBytes, always } = options
  const { now = () => performance.now() } = options

  /** Endless before it was measured. */
  const fetchMs = (bytes: number) => costs.fetchMs(bytes) ?? Number.POSITIVE_INFINITY

  /** What is saved by having `covered` tokens instead of `here`, less what they cost to fetch. */
  const gainMs = (tokens: number, here: number, covered: number) =>
    costs.prefillMs(tokens - here, here) -
    costs.prefillMs(tokens - covered, covered) -
    fetchMs(covered * tokenBytes)

  const fetch = async (
    user: UserHash,
    tokens: HistoryTokens,
    chain: DigestChain,
    here: number,
    signal: AbortSignal | undefined,
  ): Promise<RemotePast | undefined> => {
    const n = tokens.length
    const budgetMs =
      PATIENCE_MS + Math.min(costs.prefillMs(n - here, here), PATIENCE * fetchMs(n * tokenBytes))
    const start = now()
    const headMs = Math.min(budgetMs, PATIENCE_MS + PATIENCE * fetchMs(0))
    const head = await tier2.head(user, headMs, signal)
    if (head === undefined) return undefined
    const covered = coveredTokens(head.chain, tokens, chain)
    const isWhole = covered === n && covered === head.chain.tokens
    if (covered <= here || !(appendIsExact || isWhole)) return undefined
    if (!always && gainMs(n, here, covered) <= 0) return undefined
    const leftMs = Math.max(1, start + budgetMs - now())
    const rows = await tier2.fetch(user, head, covered, leftMs, signal)
    if (rows === undefined) return undefined
    try {
      if (rows.tokens <= here) return undefined
      const handle = await engine.importKv(kvPages(rows, tokens))
      costs.observeFetch(rows.tokens * tokenBytes, now() - start)
      return { handle, covered: rows.tokens }
    } catch {
      // No room, or the worker died: what then computes the K/V says so, where that fails too.
      return undefined
    } finally {
      rows.done()
    }
  }

  return async (
    user: UserHash,
    tokens: HistoryTokens,
    chain: DigestChain,
    here: number,
    signal?: AbortSignal,
    onStep?: OnStep,
  ): Promise<RemotePast | undefined> => {
    const n = tokens.length
    if (!always && gainMs(n, here, n) <= 0) return undefined
    return timed(
      onStep,
      'kv.fetch',
      () => fetch(user, tokens, chain, here, signal),
      (past) => ({ tokens: n, fetched: past?.covered ?? 0 }),
    )
  }
}
