import type { Costs } from '../cache/costs.js'
import type { KvDecision, KvQuestion } from '../cache/decide.js'
import type { UserHash } from '../cache/key.js'
import type { MemoryCache } from '../cache/memory.js'
import type { History } from '../model/sequence.js'
import { micros } from './numbers.js'
import type { KvUse } from './types.js'

export type RoutesOptions = {
  /** Absent: all K/V is kept and used. */
  readonly costs: Costs | undefined
  readonly memory: Pick<MemoryCache, 'lookup'>
  readonly microBatchSize: number
  /** K/V of one token in tier 2, in bytes. */
  readonly tokenBytes: number
}

/** Which way a request goes, and what that should cost. */
export function createRoutes({ costs, memory, microBatchSize, tokenBytes }: RoutesOptions) {
  const mode = costs?.policy.kv ?? 'always'

  const questionOf = (
    tokens: number,
    candidates: number,
    { reusedTokens, tier }: Pick<KvUse, 'reusedTokens' | 'tier'> = { reusedTokens: 0 },
  ): KvQuestion =>
    tier === 2
      ? {
          ...{ tokens, candidates, microBatchSize, covered1: 0 },
          tier2: { covered: reusedTokens, bytes: reusedTokens * tokenBytes },
        }
      : { tokens, candidates, microBatchSize, covered1: reusedTokens }

  /**
   * Whether the history's K/V is neither looked up nor kept. Without events it carries the query
   * time: not worth the place of the user's entry.
   */
  const isUnkept = (history: History) => history.events === 0 || mode === 'never'

  return {
    isUnkept,

    /** Whether K/V that is made ahead of a ranking would be looked for by it. */
    isWorthMaking: (history: History) => !isUnkept(history) && costs?.policy.keepsKv !== false,

    /**
     * Whether history and candidates go in one pass; they must fit one micro-batch. Whoever has K/V in
     * tier 1 goes there: what it covers is not known yet, and a hit beats everything.
     */
    isOnePass(user: UserHash, history: History, candidates: number): boolean {
      if (candidates > microBatchSize) return false
      if (isUnkept(history)) return true
      if (costs === undefined || mode === 'always') return false
      const { decision } = costs.decide(questionOf(history.tokens.length, candidates))
      if (decision !== 'onePass') return false
      const entry = costs.policy.keepsKv === false ? undefined : memory.lookup(user)
      entry?.done()
      return entry === undefined
    },

    /** `use` with the decision that it was, and what that should cost. */
    priced(
      decision: KvDecision,
      use: Omit<KvUse, 'decision'>,
      tokens: number,
      candidates: number,
    ): KvUse {
      if (costs === undefined) return { ...use, decision }
      const { predictedMs } = costs.priceOf(decision, questionOf(tokens, candidates, use))
      return { ...use, decision, predictedMs: micros(predictedMs) }
    },
  }
}

export type Routes = ReturnType<typeof createRoutes>

const DECISION_OF = { hit: 'hit', stale: 'append', miss: 'recompute', none: 'onePass' } as const

export function decisionOf({ state, tier }: Pick<KvUse, 'state' | 'tier'>): KvDecision {
  return tier === 2 ? 'fetch' : DECISION_OF[state]
}
