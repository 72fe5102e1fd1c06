/** What is left in a bucket; may be below 0. */
export type Bucket = { left: number }

/**
 * Token buckets by name: each begins full, and fills by so much per second up to its size.
 *
 * @param nowMs - any clock that only goes forward
 */
export function createBuckets(nowMs: () => number) {
  const buckets = new Map<string, Bucket & { atMs: number }>()
  return {
    /** The bucket as it is now. */
    filled(name: string, perSec: number, size: number): Bucket {
      const now = nowMs()
      const bucket = buckets.get(name) ?? { left: size, atMs: now }
      buckets.set(name, bucket)
      bucket.left = Math.min(size, bucket.left + ((now - bucket.atMs) / 1000) * perSec)
      bucket.atMs = now
      return bucket
    },
  }
}
