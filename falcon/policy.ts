/** Ways to a request's logits: K/V through the cache, or history and candidates in one pass. */
export type Route = 'cached' | 'onePass'

/**
 * A history without events is ranked in one pass: its context tokens carry the query time, so its
 * K/V would never be found again. One pass holds all candidates at once, so it must fit one
 * micro-batch; memory then grows with b, not with m.
 */
export function chooseRoute(events: number, candidates: number, microBatchSize: number): Route {
  return events === 0 && candidates <= microBatchSize ? 'onePass' : 'cached'
}
