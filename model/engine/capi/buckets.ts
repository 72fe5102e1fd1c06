/** Users of one batch are padded to one length: theirs differ by at most this share of a doubling. */
const BUCKETS_PER_DOUBLING = 4
const SMALLEST_BUCKET = 64

/** Lengths of one bucket differ by less than a quarter: what padding can cost at most. */
export function bucketOf(length: number): number {
  if (length <= SMALLEST_BUCKET) return SMALLEST_BUCKET
  const steps = Math.ceil(Math.log2(length / SMALLEST_BUCKET) * BUCKETS_PER_DOUBLING)
  return Math.round(SMALLEST_BUCKET * 2 ** (steps / BUCKETS_PER_DOUBLING))
}
