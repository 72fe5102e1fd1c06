import { RankError } from '../../errors.js'
import type { Ort, Pointer } from './ort.js'

/** Work for one slot; `options` are the OrtRunOptions of its runs, through which it is cancelled. */
export type Work<T> = (options: Pointer) => Promise<T>

export type Scheduler = {
  /** Runs at a time. */
  readonly slots: number
  /**
   * Runs `work` when a slot is free, in the order of the calls. An aborted `signal` drops it from the
   * queue or terminates its run; the promise then rejects with the signal's reason, and `drop` gets
   * the result of a run that ended well all the same.
   */
  submit<T>(work: Work<T>, signal?: AbortSignal, drop?: (result: T) => void): Promise<T>
  /** Waiting or in a slot. */
  pending(): number
  /** Lets everything submitted end, then refuses what comes after with WORKER_CRASHED. */
  close(): Promise<void>
}

type RunOptions = Pick<
  Ort,
  'CreateRunOptions' | 'ReleaseRunOptions' | 'RunOptionsSetTerminate' | 'RunOptionsUnsetTerminate'
>

/** At most `slots` runs at a time, first come first served. */
export function createScheduler(ort: RunOptions, slots: number): Scheduler {
  const free = Array.from({ length: slots }, () => ort.CreateRunOptions())
  const queue: ((options: Pointer) => Promise<void>)[] = []
  let pending = 0
  let closing: Promise<void> | undefined
  let drained = () => {}

  const next = () => {
    while (queue.length > 0) {
      const options = free.pop()
      if (options === undefined) return
      void queue.shift()?.(options)
    }
  }
  const leave = () => {
    pending--
    if (pending === 0) drained()
  }

  return {
    slots,
    submit<T>(work: Work<T>, signal?: AbortSignal, drop: (result: T) => void = () => {}) {
      if (closing !== undefined) {
        return Promise.reject(new RankError('WORKER_CRASHED', 'the engine is closed'))
      }
      if (signal?.aborted) return Promise.reject(signal.reason)
      return new Promise<T>((resolve, reject) => {
        let running: Pointer | undefined
        const onAbort = () => {
          reject(signal?.reason)
          if (running !== undefined) {
            // The slot stays taken until ONNX Runtime has stopped, some milliseconds later.
            ort.RunOptionsSetTerminate(running)
            return
          }
          queue.splice(queue.indexOf(job), 1)
          leave()
        }
        const job = async (options: Pointer) => {
          running = options
          try {
            const result = await work(options)
            if (signal?.aborted) drop(result)
            else resolve(result)
          } catch (error) {
            reject(error)
          } finally {
            signal?.removeEventListener('abort', onAbort)
            if (signal?.aborted) ort.RunOptionsUnsetTerminate(options)
            free.push(options)
            leave()
            next()
          }
        }
        signal?.addEventListener('abort', onAbort, { once: true })
        pending++
        queue.push(job)
        next()
      })
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
