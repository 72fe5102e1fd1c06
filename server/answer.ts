import type { RankResult } from '../falcon/types.js'

/** How the answer came about beside its result. */
export type Run = { readonly parseMs: number; readonly retries: number }

/** The JSON of one ranking; logits and places only when they were asked for. */
export function toAnswer(model: string, result: RankResult, explained: Run | undefined) {
  const { timings, warnings, scored, candidates } = result
  const { state, tier, reusedTokens, prefilledTokens } = result.kv
  return {
    model,
    items:
      explained === undefined
        ? result.items.map(({ item, score, tasks }) => ({ item, score, tasks }))
        : result.items,
    kv: { state, ...(tier !== undefined && { tier }), reusedTokens, prefilledTokens },
    timings,
    warnings,
    ...(scored < candidates && { partial: true }),
    ...(explained !== undefined && {
      explain: {
        kv: result.kv,
        timings: { parseMs: explained.parseMs, ...timings },
        historyTokens: result.historyTokens,
        truncatedEvents: result.truncatedEvents,
        candidates,
        scored,
        microBatches: result.microBatches,
        microBatchSize: result.microBatchSize,
        retries: explained.retries,
      },
    }),
  }
}
