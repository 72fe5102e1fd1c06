/** The share of the newest body in the mean. */
const NEWEST = 1 / 50

/** How much work is in a body that is not read yet, by its length, as far as those before it tell. */
export type BodyWork = {
  /** Predicted milliseconds; undefined until a body was read. */
  of(bytes: number): number | undefined
  /** So much work was in a body of so many bytes. */
  add(bytes: number, workMs: number): void
}

/**
 * @param maxBytes - what is longer is refused unread, and counts for no more than this: a header can say any length
 */
export function createBodyWork(maxBytes: number): BodyWork {
  let mean = { bytes: 0, workMs: 0 }
  return {
    of: (bytes) =>
      mean.bytes === 0 ? undefined : (Math.min(bytes, maxBytes) * mean.workMs) / mean.bytes,
    add(bytes, workMs) {
      const weight = mean.bytes === 0 ? 1 : NEWEST
      mean = {
        bytes: mean.bytes + weight * (bytes - mean.bytes),
        workMs: mean.workMs + weight * (workMs - mean.workMs),
      }
    },
  }
}
