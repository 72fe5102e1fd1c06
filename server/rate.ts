/** A bucket of tokens for each name: one request takes one, `requestsPerSec` come back per second. */
export type RateLimits = {
  /** Takes a token. 0 when there was one, else how many seconds until there is. */
  take(name: string, requestsPerSec: number): number
}

/** A bucket holds what a second brings, at least one. `nowMs` is any clock that only goes forward. */
export function createRateLimits(nowMs: () => number = () => performance.now()): RateLimits {
  const buckets = new Map<string, { tokens: number; atMs: number }>()
  return {
    take(name, requestsPerSec) {
      const size = Math.max(1, requestsPerSec)
      const now = nowMs()
      const bucket = buckets.get(name) ?? { tokens: size, atMs: now }
      buckets.set(name, bucket)
      const refilled = bucket.tokens + ((now - bucket.atMs) / 1000) * requestsPerSec
      bucket.tokens = Math.min(size, refilled)
      bucket.atMs = now
      if (bucket.tokens < 1) return (1 - bucket.tokens) / requestsPerSec
      bucket.tokens--
      return 0
    },
  }
}
