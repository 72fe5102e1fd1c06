/** Weight of the newest request in the moving average of the latency. */
const NEWEST = 0.1
const MAX_RETRY_AFTER_SEC = 60

export type Admission = ReturnType<typeof createAdmission>

/** Counts requests in flight and refuses, before any work, what goes beyond `maxInFlight`. */
export function createAdmission(maxInFlight: number) {
  let inFlight = 0
  let meanMs: number | undefined
  return {
    inFlight: () => inFlight,
    maxInFlight,
    hasRoom: (count: number) => inFlight + count <= maxInFlight,
    enter(count: number): void {
      inFlight += count
    },
    leave(count: number, tookMs: number): void {
      inFlight -= count
      meanMs = meanMs === undefined ? tookMs : meanMs + NEWEST * (tookMs - meanMs)
    },
    /** When all that is in flight should be done, in whole seconds: 1 to 60. */
    retryAfterSec(workers: number): number {
      const drainSec = ((meanMs ?? 0) * inFlight) / Math.max(1, workers) / 1000
      return Math.min(MAX_RETRY_AFTER_SEC, Math.max(1, Math.ceil(drainSec)))
    },
  }
}
