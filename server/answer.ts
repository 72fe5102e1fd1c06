import type { Ranker, RankResult } from '../falcon/types.js'
import { packItems } from './packed.js'

/** How the answer came about beside its result. */
export type Run = { readonly parseMs: number; readonly retries: number }

/**
 * The answer to one ranking; logits and places only when they were asked for. `packed`: the tasks, where
 * items go as columns.
 */
export function toAnswer(
  model: string,
  result: RankResult,
  waitedMs: number,
  explained: Run | undefined,
  packed?: Ranker['model']['tasks'],
) {
  const { warnings, scored, candidates } = result
  const queueMs = Math.round(waitedMs * 1000) / 1000
  const totalMs = Math.round((waitedMs + result.timings.totalMs) * 1000) / 1000
  const timings = { queueMs, ...result.timings, totalMs }
  const { state, tier, reusedTokens, prefilledTokens } = result.kv
  return {
    model,
    ...(packed === undefined
      ? { items: itemsOf(result, explained !== undefined) }
      : { packed: packItems(result, packed, explained !== undefined) }),
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

function itemsOf({ items }: RankResult, isExplained: boolean) {
  return isExplained ? items : items.map(({ item, score, tasks }) => ({ item, score, tasks }))
}
