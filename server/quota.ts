/** Work that each key may ask for, where it has a limit. */
export type Quota = { readonly name: string; readonly workMsPerSec?: number }

/**
 * A bucket of predicted work for each key: it fills by `workMsPerSec` and holds what a second brings. It
 * may be overdrawn by the last job, however large, so that a small quota is slow and not for ever closed.
 *
 * @param now - milliseconds, monotonic
 */
export function createQuotas(now: () => number) {
  const buckets = new Map<string, { leftMs: number; atMs: number }>()
  const filled = (name: string, workMsPerSec: number) => {
    const bucket = buckets.get(name) ?? { leftMs: workMsPerSec, atMs: now() }
    buckets.set(name, bucket)
    const at = now()
    bucket.leftMs = Math.min(
      workMsPerSec,
      bucket.leftMs + ((at - bucket.atMs) / 1000) * workMsPerSec,
    )
    bucket.atMs = at
    return bucket
  }
  return {
    /** 0 while something is left, else the milliseconds until something is. */
    overdrawnMs({ name, workMsPerSec }: Quota): number {
      if (workMsPerSec === undefined) return 0
      const { leftMs } = filled(name, workMsPerSec)
      return leftMs > 0 ? 0 : Math.max(1, (-leftMs / workMsPerSec) * 1000)
    },
    take({ name, workMsPerSec }: Quota, workMs: number): void {
      if (workMsPerSec !== undefined) filled(name, workMsPerSec).leftMs -= workMs
    },
  }
}
