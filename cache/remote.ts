import type { EncodedKv, Engine, KvHandle } from '../model/engine/engine.js'
import { type OnStep, timed } from '../model/step.js'
import type { HistoryTokens } from '../model/tokens.js'
import type { Costs } from './costs.js'
import { coveredTokens, type DigestChain } from './digest.js'
import type { UserHash } from './key.js'
import type { FetchedKv } from './redis-kv.js'
import type { Tier2 } from './tier2.js'

/** Fetched K/V of a history's first tokens, as an engine takes it. */
export function encodedKv(
  { tokens, codec, planes }: Omit<FetchedKv, 'done'>,
  history: HistoryTokens,
): EncodedKv {
  return { tokens, codec, planes, times: history.times.subarray(0, tokens) }
}

/** K/V of a history's first tokens, as the engine has it now. The caller releases it. */
export type RemotePast = { readonly handle: KvHandle; readonly covered: number }

/** On top of the budget: a pause of the garbage collector, which short histories have no room for. */
const PATIENCE_MS = 5

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
 * be cheaper than computing it. Gives nothing rather than late: it is waited for as long as computing would
 * take, head and pages together, and a few milliseconds. Whoever gives up then has spent at most twice
 * what computing alone costs, and no other rule promises less to who does not know when an answer comes.
 * (A multiple of what a fetch should take is no measure: only fetches that came in time are averaged, and
 * on a machine that is busy, as after a restart, none does; what computing costs grows with the load.)
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
    const budgetMs = PATIENCE_MS + costs.prefillMs(n - here, here)
    const start = now()
    const head = await tier2.head(user, budgetMs, signal)
    if (head === undefined) return undefined
    const covered = coveredTokens(head.chain, tokens, chain)
    const isWhole = covered === n && covered === head.chain.tokens
    if (covered <= here || !(appendIsExact || isWhole)) return undefined
    if (!always && gainMs(n, here, covered) <= 0) return undefined
    const leftMs = Math.max(1, start + budgetMs - now())
    const fetched = await tier2.fetch(user, head, covered, leftMs, signal)
    if (fetched === undefined) return undefined
    try {
      if (fetched.tokens <= here) return undefined
      const handle = await engine.importKv(encodedKv(fetched, tokens))
      costs.observeFetch(fetched.tokens * tokenBytes, now() - start)
      return { handle, covered: fetched.tokens }
    } catch {
      // No room, or the worker died: what then computes the K/V says so, where that fails too.
      return undefined
    } finally {
      fetched.done()
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
