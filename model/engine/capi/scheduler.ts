import { RankError } from '../../errors.js'
import type { Ort, Pointer } from './ort.js'

/** Work for one slot; `options` are the OrtRunOptions of its runs, through which it is cancelled. */
export type Work<T> = (options: Pointer) => Promise<T>

export type Scheduler = {
  /**
   * Runs `work` when a slot is free, in the order of the calls. An aborted `signal` drops it from the
   * queue or terminates its run; the promise then rejects with the signal's reason.
   */
  submit<T>(work: Work<T>, signal?: AbortSignal): Promise<T>
  /** Submitted and not yet settled. */
  pending(): number
  /** Lets everything submitted end, then refuses what comes after with WORKER_CRASHED. */
  close(): Promise<void>
}

type Queued = { start(options: Pointer): Promise<void> }

/** At most `slots` runs at a time, first come first served. */
export function createScheduler(ort: Ort, slots: number): Scheduler {
  const free = Array.from({ length: slots }, () => ort.CreateRunOptions())
  const queue: Queued[] = []
  let pending = 0
  let closing: Promise<void> | undefined
  let drained = () => {}

  const next = () => {
    while (queue.length > 0 && free.length > 0) {
      const options = free.pop()
      const job = queue.shift()
      if (options === undefined || job === undefined) return
      void job.start(options).finally(() => {
        free.push(options)
        next()
      })
    }
    if (pending === 0) drained()
  }

  return {
    submit<T>(work: Work<T>, signal?: AbortSignal): Promise<T> {
      if (closing !== undefined) {
        return Promise.reject(new RankError('WORKER_CRASHED', 'the engine is closed'))
      }
      if (signal?.aborted) return Promise.reject(signal.reason)
      pending++
      const { promise, job, leave } = queued(ort, work, signal)
      queue.push(job)
      void leave.then(() => {
        const place = queue.indexOf(job)
        if (place !== -1) queue.splice(place, 1)
        pending--
        if (pending === 0) drained()
      })
      next()
      return promise
    },
    pending: () => pending,
    close() {
      closing ??= new Promise<void>((resolve) => {
        drained = resolve
        if (pending === 0) resolve()
      }).then(() => {
        for (const options of free.splice(0)) ort.ReleaseRunOptions(options)
      })
      return closing
    },
  }
}

/** A job for the queue; `leave` resolves once it neither waits nor runs any more. */
function queued<T>(ort: Ort, work: Work<T>, signal: AbortSignal | undefined) {
  let running: Pointer | undefined
  let left = () => {}
  const leave = new Promise<void>((resolve) => {
    left = resolve
  })
  let job: Queued = { start: async () => {} }
  const promise = new Promise<T>((resolve, reject) => {
    const onAbort = () => {
      // The slot stays taken until ONNX Runtime has stopped, some milliseconds later.
      if (running !== undefined) ort.RunOptionsSetTerminate(running)
      else left()
      reject(signal?.reason)
    }
    signal?.addEventListener('abort', onAbort, { once: true })
    job = {
      async start(options) {
        running = options
        try {
          resolve(await work(options))
        } catch (error) {
          reject(signal?.aborted ? signal.reason : error)
        } finally {
          signal?.removeEventListener('abort', onAbort)
          if (signal?.aborted) ort.RunOptionsUnsetTerminate(options)
          left()
        }
      },
    }
  })
  return { promise, job, leave }
}
