import type { KvUse, Ranker, RankResult } from '../falcon/types.js'
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
  const timings = timingsAnswer(result.timings, waitedMs)
  return {
    model,
    ...(packed === undefined
      ? { items: itemsOf(result, explained !== undefined) }
      : { packed: packItems(result, packed, explained !== undefined) }),
    kv: kvAnswer(result.kv),
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

/** What the K/V cache did, without how it was decided. */
export function kvAnswer({ state, tier, reusedTokens, prefilledTokens }: KvUse) {
  return { state, ...(tier !== undefined && { tier }), reusedTokens, prefilledTokens }
}

/** With the wait before the work, which counts to the whole. */
export function timingsAnswer<T extends { readonly totalMs: number }>(
  timings: T,
  waitedMs: number,
) {
  const queueMs = Math.round(waitedMs * 1000) / 1000
  const totalMs = Math.round((waitedMs + timings.totalMs) * 1000) / 1000
  return { queueMs, ...timings, totalMs }
}

function itemsOf({ items }: RankResult, isExplained: boolean) {
  return isExplained ? items : items.map(({ item, score, tasks }) => ({ item, score, tasks }))
}
