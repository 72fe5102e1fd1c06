import type { Costs } from '../cache/costs.js'
import type { UserHash } from '../cache/key.js'
import type { HstuConfig } from '../model/config.js'
import type { HistoryInput } from '../model/request.js'
import { droppedEvents, roomOf } from '../model/window.js'

export type PricesOptions = {
  readonly costs: Pick<Costs, 'decide' | 'priceOf' | 'prefillMs' | 'scoreMs'>
  readonly config: HstuConfig
  readonly slackEvents: number
  readonly microBatchSize: number
  /** How many of the user's tokens are in tier 1. */
  readonly tokensOf: (user: UserHash) => number
}

/** The share of the newest stored history in their mean length. */
const NEWEST = 0.05

/**
 * What a request should cost, before any of it is done: from lengths alone, not from its tokens. What
 * tier 1 has of the user counts as if it were of this history; a stored history, which is not read
 * yet, counts as long as the user's K/V, or else as stored histories were so far.
 */
export function createPrices(options: PricesOptions) {
  const { costs, config, slackEvents, microBatchSize, tokensOf } = options
  const room = roomOf(config)
  /** Tokens; the longest until one was read, so that nothing is promised too early. */
  let storedTokens = config.maxTokens

  const tokensIn = ({ histories, series, historyOffset = 0 }: HistoryInput): number => {
    let events = 0
    for (const history of histories) events += history.length
    for (const name in series) events += series[name]?.length ?? 0
    const kept = events - droppedEvents(events, room, slackEvents, historyOffset)
    return config.context.length + (config.tokensPerEvent ?? 2) * kept
  }
  const lengthsOf = (input: HistoryInput, user: UserHash, useStored: boolean) => {
    const covered = tokensOf(user)
    const stored = useStored ? (covered || storedTokens) - config.context.length : 0
    const tokens = Math.min(tokensIn(input) + Math.max(0, stored), config.maxTokens)
    return { tokens, covered: Math.min(covered, tokens) }
  }
  const prefillMs = ({ tokens, covered }: ReturnType<typeof lengthsOf>) =>
    tokens === covered ? 0 : costs.prefillMs(tokens - covered, covered)

  return {
    /** Milliseconds of a ranking of so many candidates. */
    ofRanking(input: HistoryInput, user: UserHash, candidates: number, useStored: boolean): number {
      const { tokens, covered } = lengthsOf(input, user, useStored)
      const question = { tokens, covered1: covered, candidates, microBatchSize }
      if (tokens > config.context.length) return costs.decide(question).predictedMs
      // Without events the K/V of the user is of no use: see routes.ts.
      const decision = candidates <= microBatchSize ? 'onePass' : 'recompute'
      return costs.priceOf(decision, { ...question, covered1: 0 }).predictedMs
    },
    /** Milliseconds until the history's K/V is there. */
    ofPrefetch(input: HistoryInput, user: UserHash, useStored: boolean): number {
      return prefillMs(lengthsOf(input, user, useStored))
    },
    /** Milliseconds until the user at the end of the history is known. */
    ofEncoding(input: HistoryInput, user: UserHash, useStored: boolean): number {
      const lengths = lengthsOf(input, user, useStored)
      return prefillMs(lengths) + costs.scoreMs(1, lengths.tokens)
    },
    /** A stored history came to so many tokens. */
    observeStored(tokens: number): void {
      storedTokens += NEWEST * (tokens - storedTokens)
    },
  }
}
