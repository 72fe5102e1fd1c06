import { RankError } from '../model/errors.js'
import type { RankOptions } from './types.js'

/** The longest that setTimeout can wait. */
const LONGEST_TIMER_MS = 2 ** 31 - 1

/** When one request must end before it is done: its deadline passed, or its client left. */
export type Deadline = {
  /** For the engine; its reason is the error that the request then fails with. */
  readonly signal: AbortSignal
  /**
   * True when a partial answer must stop here, with so many candidates scored.
   * @throws {RankError} DEADLINE_EXCEEDED when no partial answer is wanted, CANCELLED
   */
  isOver(scored: number): boolean
  /** What the engine's work gives; undefined when a partial answer must do without it. */
  within<T>(work: Promise<T>): Promise<T | undefined>
  /** Ends the timer and lets go of the client's signal. */
  end(): void
}

/** `start` and `now` in milliseconds of one clock; what counts is that clock, not the timer's. */
export function createDeadline(options: RankOptions, start: number, now: () => number): Deadline {
  const { deadlineMs = Number.POSITIVE_INFINITY, partial = false, signal: client } = options
  const controller = new AbortController()
  let scored = 0
  let reason: RankError | undefined
  let timer: NodeJS.Timeout | undefined

  const stop = (code: 'DEADLINE_EXCEEDED' | 'CANCELLED', what: string) => {
    const elapsed = (now() - start).toFixed(1)
    reason ??= new RankError(code, `${what} after ${elapsed} ms with ${scored} candidates scored`)
    controller.abort(reason)
  }
  const onClientLeft = () => stop('CANCELLED', 'the client left')
  const checkClock = () => {
    if (now() - start > deadlineMs) stop('DEADLINE_EXCEEDED', `deadlineMs ${deadlineMs} passed`)
  }
  const wait = () => {
    // One more: a timer may fire early by a fraction, and a passed deadline is later than it.
    const leftMs = start + deadlineMs - now() + 1
    timer = setTimeout(
      () => {
        checkClock()
        if (reason === undefined) wait()
      },
      Math.min(leftMs, LONGEST_TIMER_MS),
    ).unref()
  }
  /** True for what a partial answer is content to be stopped by. */
  const isEnough = (error: unknown) =>
    partial && error === reason && reason?.code === 'DEADLINE_EXCEEDED'

  if (client?.aborted) onClientLeft()
  else client?.addEventListener('abort', onClientLeft, { once: true })
  if (deadlineMs !== Number.POSITIVE_INFINITY) wait()

  return {
    signal: controller.signal,
    isOver(done) {
      scored = done
      if (reason === undefined) checkClock()
      if (reason === undefined) return false
      if (isEnough(reason)) return true
      throw reason
    },
    async within(work) {
      try {
        return await work
      } catch (error) {
        if (isEnough(error)) return undefined
        throw error
      }
    },
    end() {
      clearTimeout(timer)
      client?.removeEventListener('abort', onClientLeft)
    },
  }
}
