/** A promise and its two ends. (Promise.withResolvers is not there before Node 22.) */
export function deferred<T>() {
  let resolve: (value: T) => void = () => {}
  let reject: (error: unknown) => void = () => {}
  const promise = new Promise<T>((onResolve, onReject) => {
    resolve = onResolve
    reject = onReject
  })
  return { promise, resolve, reject }
}

/** Waits `ms`, or until `end` comes first. */
export function pause(ms: number, end: Promise<void>): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms)
    void end.then(() => {
      clearTimeout(timer)
      resolve()
    })
  })
}

/** `promise`, or at once the reason of an aborted `signal`; what the promise stands for goes on. */
export function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason)
    if (signal.aborted) onAbort()
    else signal.addEventListener('abort', onAbort, { once: true })
    void promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort))
  })
}

/**
 * `promise`, or after `ms` what `late` gives. What has arrived by then counts, also where this process
 * was too busy to look at it: in a turn of the event loop timers come before input.
 */
export function withinMs<T>(promise: Promise<T>, ms: number, late: () => T): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => setImmediate(() => resolve(late())), ms)
    void promise.then(resolve, reject).finally(() => clearTimeout(timer))
  })
}
