import type { Manifest } from '../../manifest.js'
import type { RankUser } from '../engine.js'
import { KV_ELEMENT_BYTES } from '../kv-shape.js'
import { bucketOf } from './buckets.js'

/** Of one run's score matrices, in bytes: what is larger fills a GPU alone. */
const BATCH_BYTES = 2 ** 28
/** Limits that are tried, each twice the one before. */
const LIMITS = [1, 2, 4, 8, 16]
const ROUNDS = 3
/** A larger batch pads more and makes everyone in it wait for all: worth this much at least. */
const WANTED_GAIN = 1.1

/**
 * How many users to rank in one run: the limit is doubled as long as that makes a burst of requests
 * WANTED_GAIN times as fast. `burst` says how long one takes under a limit.
 */
export async function chooseBatchLimit(burst: (limit: number) => Promise<number>): Promise<number> {
  let best = { limit: 1, ms: Number.POSITIVE_INFINITY }
  for (const limit of LIMITS) {
    let ms = Number.POSITIVE_INFINITY
    // The first run of a shape also makes its memory.
    for (let round = 0; round < ROUNDS; round++) ms = Math.min(ms, await burst(limit))
    if (ms * WANTED_GAIN > best.ms) break
    best = { limit, ms }
  }
  return best.limit
}

/** Users of this one's lengths whose (H, n, n+m) score matrices still gain from sharing a run; 0 if none do. */
export function largestBatch({ config, precision, embedding }: Manifest, user: RankUser): number {
  const n = bucketOf(user.history.length)
  const m = bucketOf(user.candidates.length / embedding.slots)
  return Math.floor(BATCH_BYTES / (config.heads * n * (n + m) * KV_ELEMENT_BYTES[precision]))
}
