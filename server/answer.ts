import type { Ranker, RankResult } from '../falcon/types.js'
import { packItems } from './packed.js'

/** How the answer came about beside its result. */
export type Run = { readonly parseMs: number; readonly retries: number }

/** The name that answers carry and that requests may ask for. */
export function modelId({ name, version }: Ranker['model']): string {
  return `${name}@${version}`
}

/** The answer to one ranking; logits and places only when they were asked for, or packed. */
export function toAnswer(
  model: Ranker['model'],
  result: RankResult,
  waitedMs: number,
  explained: Run | undefined,
  isPacked = false,
) {
  const { warnings, scored, candidates } = result
  const queueMs = Math.round(waitedMs * 1000) / 1000
  const totalMs = Math.round((waitedMs + result.timings.totalMs) * 1000) / 1000
  const timings = { queueMs, ...result.timings, totalMs }
  const { state, tier, reusedTokens, prefilledTokens } = result.kv
  return {
    model: modelId(model),
    ...(isPacked
      ? { packed: packItems(result, model.tasks, explained !== undefined) }
      : { items: itemsOf(result, explained !== undefined) }),
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
