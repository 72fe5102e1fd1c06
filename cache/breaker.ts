/** Failures in a row after which nobody waits for the thing any more. */
const MAX_FAILURES = 3
/** Before the first probe; doubled by each that fails. */
const FIRST_PAUSE_MS = 100
const LONGEST_PAUSE_MS = 5_000

export type BreakerOptions = {
  /** Resolves when the thing works again. Runs in the background, never on behalf of a request. */
  readonly probe: () => Promise<unknown>
  readonly onChange?: (state: 'open' | 'closed') => void
  /** Milliseconds; setTimeout's when absent. */
  readonly after?: (ms: number, then: () => void) => { cancel(): void }
}

/**
 * A circuit breaker: open after a few failures in a row of one kind of call, then probed in the background
 * until a probe succeeds. While it is open no request pays for finding out that the other side is still
 * down. Where probes succeed and calls still fail, the pauses grow on: only a call that works again
 * makes them short.
 */
export function createBreaker<Call extends string>({
  probe,
  onChange = () => {},
  after = timer,
}: BreakerOptions) {
  const failures = new Map<Call, number>()
  /** The kind of call that opened it, until one works. */
  let culprit: Call | undefined
  let isOpen = false
  let opened = 0
  let pauseMs = FIRST_PAUSE_MS
  let next: { cancel(): void } | undefined

  const close = () => {
    failures.clear()
    if (!isOpen) return
    isOpen = false
    onChange('closed')
  }
  const probeLater = () => {
    next = after(pauseMs, () => {
      pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS)
      probe().then(close, () => {
        if (isOpen) probeLater()
      })
    })
  }
  return {
    isOpen: () => isOpen,
    /** How often it went open. */
    opened: () => opened,
    succeeded(call: Call): void {
      failures.delete(call)
      if (call !== culprit) return
      culprit = undefined
      pauseMs = FIRST_PAUSE_MS
      close()
    },
    failed(call: Call): void {
      const inARow = (failures.get(call) ?? 0) + 1
      failures.set(call, inARow)
      if (isOpen || inARow < MAX_FAILURES) return
      isOpen = true
      culprit = call
      opened++
      onChange('open')
      probeLater()
    },
    /** Ends the probes. */
    stop(): void {
      isOpen = false
      next?.cancel()
    },
  }
}

function timer(ms: number, then: () => void) {
  const handle = setTimeout(then, ms).unref()
  return { cancel: () => clearTimeout(handle) }
}
