const HIT_RATES = [10, 50, 200] as const
const NDCGS = [10, 200] as const

/** The longest list that the metrics look at. */
export const DEEPEST = 200

/**
 * Hit rates and NDCG over users with one relevant item each, by name: `HR@10` and so on.
 *
 * @param ranks - place of each user's item in what was retrieved, 1 the best; Infinity for one not in it
 */
export function retrievalQuality(ranks: readonly number[]): { readonly [metric: string]: number } {
  const mean = (value: (rank: number) => number) =>
    ranks.reduce((sum, rank) => sum + value(rank), 0) / ranks.length
  return Object.fromEntries([
    ...HIT_RATES.map((k) => [`HR@${k}`, mean((rank) => Number(rank <= k))]),
    ...NDCGS.map((k) => [`NDCG@${k}`, mean((rank) => (rank <= k ? 1 / Math.log2(rank + 1) : 0))]),
  ])
}

/** Place of an item in a retrieved list, from 1; Infinity where it is not in it. */
export function rankIn(retrieved: readonly string[], item: string): number {
  const place = retrieved.indexOf(item)
  return place < 0 ? Number.POSITIVE_INFINITY : place + 1
}
