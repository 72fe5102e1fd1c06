/** Ways to a request's logits: K/V through the cache, or history and candidates in one pass. */
export type Route = 'cached' | 'onePass'

/** Milliseconds at the longest history and b candidates. */
export type Costs = {
  /** K/V of the whole history. */
  readonly prefillMs: number
  readonly scoreMs: number
  /** History and candidates in one pass. */
  readonly rankMs: number
}

/**
 * True where keeping K/V is paid for by the first request that finds it again: a prefill and two
 * scores then cost no more than two passes. They do wherever arithmetic decides, on CPUs and in large
 * models; a small model on a GPU is bound by launches, and one pass has the fewest.
 */
export function paysToKeep({ prefillMs, scoreMs, rankMs }: Costs): boolean {
  return prefillMs + 2 * scoreMs <= 2 * rankMs
}

export type RouteInput = {
  readonly events: number
  readonly candidates: number
  readonly microBatchSize: number
  readonly keepsKv: boolean
}

/**
 * A history without events is ranked in one pass: its context tokens carry the query time, so its
 * K/V would never be found again. One pass holds all candidates at once, so it must fit one
 * micro-batch; memory then grows with b, not with m.
 */
export function chooseRoute({ events, candidates, microBatchSize, keepsKv }: RouteInput): Route {
  return (events === 0 || !keepsKv) && candidates <= microBatchSize ? 'onePass' : 'cached'
}
