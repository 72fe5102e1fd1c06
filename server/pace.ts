import { createAverage } from '../cache/average.js'

/** The share of the newest measurement. */
const NEWEST = 1 / 50
/** One job during a pause of the machine must not pass for the machine. */
const MAX_RATIO = 8

/** How fast work is done while there is always some, in predicted milliseconds per millisecond. */
export type Pace = {
  /** What is expected until something is measured. */
  perMs(): number
  /** So much work was done in so many milliseconds; 0 of them where several jobs end at once. */
  add(workMs: number, ms: number): void
}

/** Two moving averages, of work and of time, so that jobs count by their length. */
export function createPace(expected: () => number): Pace {
  let meanWorkMs = 0
  let meanMs = 0
  const perMs = () => (meanMs > 0 ? meanWorkMs / meanMs : expected())
  return {
    perMs,
    add(workMs, ms) {
      if (meanMs === 0) {
        meanWorkMs = workMs
        meanMs = workMs / expected()
      }
      const longest = (MAX_RATIO * Math.max(workMs, meanWorkMs)) / perMs()
      meanWorkMs += NEWEST * (workMs - meanWorkMs)
      meanMs += NEWEST * (Math.min(ms, longest) - meanMs)
    },
  }
}

/** What is not measured again is half forgotten after this: else who is refused for it would never learn. */
const HALF_LIFE_MS = 1000

/** How much longer than predicted the wait in the queue is. */
export type Lateness = {
  /** Measured over predicted; 1 until something is measured, and again when nothing was for long. */
  ratio(): number
  add(measuredMs: number, predictedMs: number): void
}

/** @param now - milliseconds, monotonic */
export function createLateness(now: () => number): Lateness {
  const average = createAverage(NEWEST)
  let lastMs = 0
  return {
    ratio: () => 1 + (average.ratio() - 1) * 2 ** ((lastMs - now()) / HALF_LIFE_MS),
    add(measuredMs, predictedMs) {
      if (predictedMs === 0) return
      average.add(measuredMs, predictedMs)
      lastMs = now()
    },
  }
}
