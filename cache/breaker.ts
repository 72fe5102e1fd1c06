/** Failures in a row after which nobody waits for the thing any more. */
const MAX_FAILURES = 3
/** Before the first probe; doubled by each that fails. */
const FIRST_PAUSE_MS = 100
const LONGEST_PAUSE_MS = 5_000

export type Breaker = ReturnType<typeof createBreaker>

export type BreakerOptions = {
  /** Resolves when the thing works again. Runs in the background, never on behalf of a request. */
  readonly probe: () => Promise<unknown>
  readonly onChange?: (state: 'open' | 'closed') => void
  /** Milliseconds; setTimeout's when absent. */
  readonly after?: (ms: number, then: () => void) => { cancel(): void }
}

/**
 * A circuit breaker: open after a few failures in a row, then probed in the background until a probe
 * succeeds. While it is open no request pays for finding out that the other side is still down.
 */
export function createBreaker({ probe, onChange = () => {}, after = timer }: BreakerOptions) {
  let failures = 0
  let isOpen = false
  let opened = 0
  let pauseMs = FIRST_PAUSE_MS
  let next: { cancel(): void } | undefined

  const close = () => {
    failures = 0
    if (!isOpen) return
    isOpen = false
    pauseMs = FIRST_PAUSE_MS
    onChange('closed')
  }
  const probeLater = () => {
    next = after(pauseMs, () => {
      probe().then(close, () => {
        pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS)
        if (isOpen) probeLater()
      })
    })
  }
  return {
    isOpen: () => isOpen,
    /** How often it went open. */
    opened: () => opened,
    succeeded: close,
    failed(): void {
      failures++
      if (isOpen || failures < MAX_FAILURES) return
      isOpen = true
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
