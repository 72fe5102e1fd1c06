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
