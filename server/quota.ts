import { createBuckets } from './bucket.js'

/** Work that each key may ask for, where it has a limit. */
export type Quota = { readonly name: string; readonly workMsPerSec?: number }

/**
 * A bucket of predicted work for each key: it fills by `workMsPerSec` and holds what a second brings. It
 * may be overdrawn by the last job, however large, so that a small quota is slow and not for ever closed.
 *
 * @param now - milliseconds, monotonic
 */
export function createQuotas(now: () => number) {
  const buckets = createBuckets(now)
  return {
    /** 0 while something is left, else the milliseconds until something is. */
    overdrawnMs({ name, workMsPerSec }: Quota): number {
      if (workMsPerSec === undefined) return 0
      const { left } = buckets.filled(name, workMsPerSec, workMsPerSec)
      return left > 0 ? 0 : Math.max(1, (-left / workMsPerSec) * 1000)
    },
    take({ name, workMsPerSec }: Quota, workMs: number): void {
      if (workMsPerSec === undefined) return
      buckets.filled(name, workMsPerSec, workMsPerSec).left -= workMs
    },
  }
}
