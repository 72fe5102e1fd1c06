/** How a request comes to its scores; all but the last by K/V that is then in tier 1. */
export type KvDecision =
  /** Tier 1 holds the whole history. */
  | 'hit'
  /** Tier 1 holds a beginning; the rest is prefilled behind it. */
  | 'append'
  /** Tier 2 holds more than tier 1: it is fetched, and what it lacks is prefilled. */
  | 'fetch'
  /** All of the history is prefilled. */
  | 'recompute'
  /** History and candidates in one run; no K/V is left. */
  | 'onePass'

/** `auto`: whichever is predicted to cost least. `always`: all K/V that there is. `never`: none. */
export const KV_MODES = ['auto', 'always', 'never'] as const
export type KvMode = (typeof KV_MODES)[number]

/** What is known of a request when it is decided. */
export type KvQuestion = {
  /** Of the whole history. */
  readonly tokens: number
  /** The first tokens whose K/V tier 1 holds. */
  readonly covered1: number
  /** The first tokens whose K/V tier 2 holds, and the bytes to fetch for them. */
  readonly tier2?: { readonly covered: number; readonly bytes: number }
  readonly candidates: number
  readonly microBatchSize: number
}

export type KvChoice = {
  readonly decision: KvDecision
  /** From now until every candidate is scored, milliseconds. */
  readonly predictedMs: number
}

/** Predicted milliseconds of each piece of work. */
export type Prices = {
  prefillMs(newTokens: number, pastTokens: number): number
  /** One micro-batch. */
  scoreMs(candidates: number, tokens: number): number
  rankMs(candidates: number, tokens: number): number
  /** Undefined where there is no tier 2. */
  fetchMs(bytes: number): number | undefined
}

export type KvPolicy = {
  readonly kv: KvMode
  /** Measured, and then the answer for all requests; predicted for each where it is absent. */
  readonly keepsKv?: boolean | undefined
}

/** One pass must promise more than the error of a prediction, for it leaves nothing behind. */
const MARGIN = 1.1

/**
 * The cheapest way to a request's scores, counting one more request of the same user: K/V that is
 * kept makes that one a hit, and costs it a score; one pass costs it all again. One pass holds all
 * candidates at once, so it must fit one micro-batch; memory then grows with b, not with m.
 */
export function decide(prices: Prices, policy: KvPolicy, question: KvQuestion): KvChoice {
  const { tokens, covered1, tier2, candidates, microBatchSize } = question
  const fits = candidates <= microBatchSize && policy.kv !== 'always'
  if (policy.kv === 'never') return choice(prices, fits ? 'onePass' : 'recompute', question)
  if (covered1 >= tokens && tokens > 0) return choice(prices, 'hit', question)
  if (fits && policy.keepsKv === false) return choice(prices, 'onePass', question)
  const hasMore = tier2 !== undefined && tier2.covered > covered1
  if (policy.kv === 'always') {
    const decision = hasMore ? 'fetch' : covered1 > 0 ? 'append' : 'recompute'
    return choice(prices, decision, question)
  }
  let decision: KvDecision = 'recompute'
  let leastMs = kvMs(prices, 'recompute', question)
  if (covered1 > 0) {
    const ms = kvMs(prices, 'append', question)
    if (ms <= leastMs) {
      decision = 'append'
      leastMs = ms
    }
  }
  if (hasMore) {
    const ms = kvMs(prices, 'fetch', question)
    if (ms < leastMs) {
      decision = 'fetch'
      leastMs = ms
    }
  }
  const scoreMs = scoresMs(prices, question)
  if (fits && policy.keepsKv === undefined) {
    const rankMs = prices.rankMs(candidates, tokens)
    const pays = paysToKeep({ prefillMs: leastMs, scoreMs, rankMs: rankMs * MARGIN })
    if (!pays) return { decision: 'onePass', predictedMs: rankMs }
  }
  return { decision, predictedMs: leastMs + scoreMs }
}

/** A decision with its price, whoever took it. */
export function choice(prices: Prices, decision: KvDecision, question: KvQuestion): KvChoice {
  const predictedMs =
    decision === 'onePass'
      ? prices.rankMs(question.candidates, question.tokens)
      : kvMs(prices, decision, question) + scoresMs(prices, question)
  return { decision, predictedMs }
}

/**
 * True where keeping K/V is paid for by the first request that finds it again: to get it and two
 * scores then cost no more than two passes. They do wherever arithmetic decides, on CPUs and in large
 * models; a small model on a GPU is bound by launches, and one pass has the fewest.
 */
export function paysToKeep(ms: {
  readonly prefillMs: number
  readonly scoreMs: number
  readonly rankMs: number
}): boolean {
  return ms.prefillMs + 2 * ms.scoreMs <= 2 * ms.rankMs
}

/** Until the history's K/V is in tier 1; infinite for a fetch from where nothing is. */
function kvMs(
  prices: Prices,
  decision: Exclude<KvDecision, 'onePass'>,
  { tokens, covered1, tier2 }: KvQuestion,
): number {
  switch (decision) {
    case 'hit':
      return 0
    case 'append':
      return prices.prefillMs(tokens - covered1, covered1)
    case 'recompute':
      return prices.prefillMs(tokens, 0)
    case 'fetch': {
      if (tier2 === undefined) return Number.POSITIVE_INFINITY
      const fetchMs = prices.fetchMs(tier2.bytes) ?? Number.POSITIVE_INFINITY
      const rest = tokens - tier2.covered
      return rest > 0 ? fetchMs + prices.prefillMs(rest, tier2.covered) : fetchMs
    }
  }
}

/** All micro-batches, of balanced sizes. */
function scoresMs({ scoreMs }: Prices, { tokens, candidates, microBatchSize }: KvQuestion): number {
  const runs = Math.ceil(candidates / microBatchSize)
  return runs === 0 ? 0 : runs * scoreMs(candidates / runs, tokens)
}
