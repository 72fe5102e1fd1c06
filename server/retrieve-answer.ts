import type { RankResult, RetrieveResult } from '../falcon/types.js'
import type { Run } from './answer.js'
import { kvAnswer, timingsAnswer } from './answer.js'

/** A ranking of what was retrieved, by the model of this id. */
export type RankedAfter = { readonly model: string; readonly result: RankResult }

/** The answer to one retrieval; places and how it came about only when they were asked for. */
export function toRetrieveAnswer(
  model: string,
  result: RetrieveResult,
  ranked: RankedAfter | undefined,
  waitedMs: number,
  explained: Run | undefined,
) {
  const timings = timingsAnswer(result.timings, waitedMs)
  const { historyTokens, truncatedEvents, unknownItems, listed, excluded } = result
  return {
    model,
    items: itemsOf(result, ranked, explained !== undefined),
    kv: kvAnswer(result.kv),
    timings,
    warnings: [...result.warnings, ...(ranked?.result.warnings ?? [])],
    ...(ranked !== undefined && {
      rank: {
        model: ranked.model,
        kv: kvAnswer(ranked.result.kv),
        timings: ranked.result.timings,
      },
    }),
    ...(explained !== undefined && {
      explain: {
        kv: result.kv,
        timings: { parseMs: explained.parseMs, ...timings },
        ...{ historyTokens, truncatedEvents, unknownItems, listed, excluded },
        chunkMs: result.chunkMs,
        chunkItems: result.chunkItems,
        retries: explained.retries,
      },
    }),
  }
}

function itemsOf(
  { items }: RetrieveResult,
  ranked: RankedAfter | undefined,
  isExplained: boolean,
): object[] {
  const place = (index: number | undefined) => isExplained && index !== undefined && { index }
  if (ranked === undefined) {
    return items.map(({ item, score, index }) => ({ item, score, ...place(index) }))
  }
  return ranked.result.items.map(({ item, score, tasks, index }) => {
    const found = items[index]
    return { item, score, tasks, retrievalScore: found?.score, ...place(found?.index) }
  })
}
