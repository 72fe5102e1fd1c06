import { Worker } from 'node:worker_threads'
import { deferred, unlessAborted } from '../../deferred.js'
import { fromWire, RankError } from '../../errors.js'
import type { Answer, FromWorker, Job, ToWorker, WorkerOptions } from './protocol.js'

type Pending = {
  readonly cost: number
  readonly resolve: (answer: Answer[Job['kind']]) => void
  readonly reject: (error: RankError) => void
}

type Listener = {
  readonly onWarning: (warning: string) => void
  /** It ended after it had loaded, told to or not. */
  readonly onExit: (lastError: string) => void
}

/** One worker thread and the jobs that it has. */
export type Thread = {
  readonly worker: Worker
  /** The provider that it runs on; rejects where it does not load. */
  readonly ready: Promise<'cpu' | 'cuda'>
  /** It has loaded and takes jobs. */
  isReady(): boolean
  /** Sum of the costs of its jobs: what least-loaded dispatch compares. */
  load(): number
  pendingJobs(): number
  /** @throws {RankError} WORKER_CRASHED when it is gone, or goes before it answers */
  send<K extends Job['kind']>(
    job: Extract<Job, { kind: K }>,
    cost: number,
    signal?: AbortSignal,
  ): Promise<Answer[K]>
  /** Forgets a handle's K/V, behind the jobs that were sent before. */
  release(handle: number): void
  /** Asks it to end behind its last job; never terminate(), which aborts inside an inference. */
  stop(): Promise<void>
}

export function startThread(
  index: number,
  workerData: WorkerOptions,
  { onWarning, onExit }: Listener,
): Thread {
  const worker = new Worker(new URL('./worker.js', import.meta.url), { workerData })
  const ready = deferred<'cpu' | 'cuda'>()
  ready.promise.catch(() => {})
  const jobs = new Map<number, Pending>()
  let state: 'starting' | 'ready' | 'gone' = 'starting'
  let load = 0
  let nextId = 1
  let lastError = 'exited without a word'

  const post = (message: ToWorker) => worker.postMessage(message)
  const settle = (id: number, how: (pending: Pending) => void): void => {
    const pending = jobs.get(id)
    if (pending === undefined) return
    jobs.delete(id)
    load -= pending.cost
    how(pending)
  }

  worker.on('message', (message: FromWorker) => {
    switch (message.kind) {
      case 'ready':
        if (message.warning !== undefined) onWarning(message.warning)
        state = 'ready'
        return ready.resolve(message.provider)
      case 'failed':
        return ready.reject(fromWire(message.error))
      case 'done':
        return settle(message.id, ({ resolve }) => resolve(message.answer))
      case 'error':
        return settle(message.id, ({ reject }) => reject(fromWire(message.error)))
    }
  })
  worker.on('error', (error) => {
    lastError = error instanceof Error ? error.message : String(error)
  })
  worker.on('exit', () => {
    const wasReady = state === 'ready'
    state = 'gone'
    const crash = new RankError('WORKER_CRASHED', `inference worker ${index} crashed: ${lastError}`)
    ready.reject(crash)
    for (const id of [...jobs.keys()]) settle(id, ({ reject }) => reject(crash))
    if (wasReady) onExit(lastError)
  })

  return {
    worker,
    ready: ready.promise,
    isReady: () => state === 'ready',
    load: () => load,
    pendingJobs: () => jobs.size,
    send<K extends Job['kind']>(
      job: Extract<Job, { kind: K }>,
      cost: number,
      signal?: AbortSignal,
    ): Promise<Answer[K]> {
      if (state !== 'ready') {
        const message = `inference worker ${index} is gone`
        return Promise.reject(new RankError('WORKER_CRASHED', message))
      }
      const id = nextId++
      const answer = new Promise<Answer[K]>((resolve, reject) => {
        // The worker answers a job of kind K with Answer[K]: the one place that this is taken on trust.
        jobs.set(id, { cost, resolve: resolve as Pending['resolve'], reject })
      })
      load += cost
      post({ kind: 'job', id, job })
      return unlessAborted(answer, signal).catch((error: unknown) => {
        // It counts as pending until the worker has dropped it, or done it: nothing stops a run.
        if (signal?.aborted && state === 'ready') post({ kind: 'cancel', id })
        throw error
      })
    },
    release(handle) {
      if (state === 'ready') post({ kind: 'release', handle })
    },
    async stop() {
      if (state === 'gone') return
      const gone = new Promise<void>((resolve) => worker.once('exit', () => resolve()))
      post({ kind: 'close' })
      await gone
    },
  }
}
