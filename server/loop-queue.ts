import { type Claim, createFairQueue } from './fair-queue.js'
import { createPace } from './pace.js'

/**
 * After so long no other body is begun before the loop looks at its sockets again: whoever is refused
 * there, or has an answer coming, waits. One of a ranking takes longer by itself.
 */
const SLICE_MS = 0.25
/** What a body is taken for: one counts for so much beside another. How fast they go is measured. */
const BODY_MS = 0.1
const BYTES_PER_MS = 32 * 1024

/** Whose body it is. */
export type Owner = Omit<Claim, 'workMs'>

/** Shares out the event loop as the queue before it shares out the engine: parsing, too, is work. */
export type LoopQueue = {
  /**
   * Does `task`, the parsing of a body and all that follows at once, when it is its turn: in the next gap
   * where nothing else waits.
   */
  run(owner: Owner, bytes: number, task: () => void): void
  /**
   * Milliseconds that a body would wait which comes now, for those before it. Only what has come counts,
   * whatever headers promised.
   */
  waitMs(owner: Owner, bytes: number | undefined): number
}

export type LoopQueueOptions = {
  /** What is longer is refused unread; no limit when absent. */
  readonly maxBodyBytes?: number
  /** Milliseconds, monotonic. */
  readonly now?: () => number
  /** Calls back when all sockets that were readable have been read from. */
  readonly afterSockets?: (callback: () => void) => void
  /** Calls back when all has run that what runs now leads to, promises too. */
  readonly afterThis?: (callback: () => void) => void
}

type Waiting = Claim & { readonly task: () => void }

/** Between any two slices of this work the loop reads its sockets, where refusals are cheap and quick. */
export function createLoopQueue(options: LoopQueueOptions = {}): LoopQueue {
  const {
    maxBodyBytes = Number.POSITIVE_INFINITY,
    now = () => performance.now(),
    afterSockets = (callback) => void setImmediate(callback),
    // Ticks wait for the microtasks before them.
    afterThis = (callback) => queueMicrotask(() => process.nextTick(callback)),
  } = options
  const queue = createFairQueue<Waiting>()
  const pace = createPace(() => 1)
  let isAwake = false
  /** The end of the body before, where others have waited ever since. */
  let busySince: number | undefined

  const claimOf = (owner: Owner, bytes: number): Claim => ({
    ...owner,
    workMs: BODY_MS + Math.min(bytes, maxBodyBytes) / BYTES_PER_MS,
  })
  const wake = (): void => {
    isAwake = true
    afterSockets(() => next(now() + SLICE_MS))
  }
  const next = (endMs: number): void => {
    const waiting = queue.shift()
    if (waiting === undefined) {
      isAwake = false
      return
    }
    // What came alone says how fast it can be, so that a slow time is not remembered for ever.
    const since = busySince ?? now()
    afterThis(() => {
      const ended = now()
      pace.add(waiting.workMs, ended - since)
      busySince = queue.length() > 0 ? ended : undefined
      if (ended < endMs) next(endMs)
      else wake()
    })
    waiting.task()
  }

  return {
    run(owner, bytes, task) {
      queue.push({ ...claimOf(owner, bytes), task })
      if (!isAwake) wake()
    },
    waitMs: (owner, bytes = 0) =>
      queue.length() === 0 ? 0 : queue.aheadMs(claimOf(owner, bytes)) / pace.perMs(),
  }
}
