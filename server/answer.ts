import type { Ranker, RankResult } from '../falcon/types.js'

/** How the answer came about beside its result. */
export type Run = { readonly parseMs: number; readonly retries: number }

/** The name that answers carry and that requests may ask for. */
export function modelId({ name, version }: Ranker['model']): string {
  return `${name}@${version}`
}

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
        unknownItems: result.unknownItems,
        candidates,
        scored,
        microBatches: result.microBatches,
        microBatchMs: result.microBatchMs,
        microBatchSize: result.microBatchSize,
        retries: explained.retries,
      },
    }),
  }
}
