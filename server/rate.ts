import { createBuckets } from './bucket.js'

/** A bucket of tokens for each name: one request takes one, `requestsPerSec` come back per second. */
export type RateLimits = {
  /** Takes a token. 0 when there was one, else how many seconds until there is. */
  take(name: string, requestsPerSec: number): number
}

/** A bucket holds what a second brings, at least one. `nowMs` is any clock that only goes forward. */
export function createRateLimits(nowMs: () => number = () => performance.now()): RateLimits {
  const buckets = createBuckets(nowMs)
  return {
    take(name, requestsPerSec) {
      const bucket = buckets.filled(name, requestsPerSec, Math.max(1, requestsPerSec))
      if (bucket.left < 1) return (1 - bucket.left) / requestsPerSec
      bucket.left--
      return 0
    },
  }
}
