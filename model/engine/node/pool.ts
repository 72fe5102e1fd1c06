import { Worker } from 'node:worker_threads'
import { deferred, pause, unlessAborted } from '../../deferred.js'
import { fromWire, RankError } from '../../errors.js'
import type { Bundle } from '../../manifest.js'
import type { Engine, EngineEvent, KvHandle, WarmUp } from '../engine.js'
import type { Answer, FromWorker, Job, ToWorker, WorkerOptions } from './protocol.js'

/** A replacement that does not start is tried again for ever, after pauses that double. */
const FIRST_RETRY_MS = 100
const LONGEST_RETRY_MS = 30_000

export type NodeEngineOptions = {
  readonly bundle: Bundle
  /** 1 when absent, as `threadsPerWorker`: the least that runs. */
  readonly workers?: number
  readonly threadsPerWorker?: number
  /** `cpu` when absent. */
  readonly provider?: 'cpu' | 'cuda'
  readonly deviceId?: number
  /** Use the CPU when the CUDA provider is missing, instead of failing. */
  readonly cudaFallback?: boolean
  /** Told about crashes and fallbacks; the engine itself does not log. */
  readonly onEvent?: (event: EngineEvent) => void
}

type Pending = {
  readonly cost: number
  readonly resolve: (answer: Answer[Job['kind']]) => void
  readonly reject: (error: RankError) => void
}

type Thread = {
  readonly index: number
  readonly worker: Worker
  readonly jobs: Map<number, Pending>
  /** Sum of the costs of `jobs`: what least-loaded dispatch compares. */
  load: number
  state: 'starting' | 'ready' | 'gone'
  readonly ready: Promise<'cpu' | 'cuda'>
}

/**
 * The portable engine: onnxruntime-node in worker threads, one set of sessions and its K/V each.
 * Resolves when every worker has loaded the bundle. A crashed worker is replaced; its jobs are
 * rejected with WORKER_CRASHED and its handles are dead.
 * @throws {RankError} MODEL_CONTRACT, ENGINE_UNAVAILABLE
 */
export async function createNodeEngine(
  options: NodeEngineOptions,
): Promise<Engine & { readonly threads: () => readonly Worker[] }> {
  const {
    bundle,
    onEvent = () => {},
    workers = 1,
    threadsPerWorker = 1,
    provider = 'cpu',
  } = options
  const { slots } = bundle.manifest.embedding
  const threads: Thread[] = []
  const handles = new WeakMap<KvHandle, { readonly thread: Thread; readonly id: number }>()
  /** Under way; a thread enters `threads` only once it takes jobs. */
  const replacements = new Set<Promise<void>>()
  let nextId = 1
  let restarts = 0
  let closing = false
  /** Resolved by close(): ends the pauses between restarts. */
  const closed = deferred<void>()
  let warmUpShapes: WarmUp | undefined

  const start = (index: number): Thread => {
    const workerData: WorkerOptions = {
      folder: bundle.folder,
      manifest: bundle.manifest,
      provider,
      deviceId: options.deviceId ?? 0,
      cudaFallback: options.cudaFallback ?? false,
      threads: threadsPerWorker,
      // Worth 10 to 20 % to a lone worker (146 for 166 ms at the paper's shape, b = 256, 2 threads);
      // spinning threads of several workers would take each other's cores.
      spin: workers === 1 && threadsPerWorker > 1,
    }
    const worker = new Worker(new URL('./worker.js', import.meta.url), { workerData })
    const ready = deferred<'cpu' | 'cuda'>()
    const thread: Thread = {
      index,
      worker,
      jobs: new Map(),
      load: 0,
      state: 'starting',
      ready: ready.promise,
    }
    ready.promise.catch(() => {})
    let lastError = 'exited without a word'
    worker.on('message', (message: FromWorker) => {
      switch (message.kind) {
        case 'ready':
          if (message.warning !== undefined) onEvent({ kind: 'provider', warning: message.warning })
          thread.state = 'ready'
          return ready.resolve(message.provider)
        case 'failed':
          return ready.reject(fromWire(message.error))
        case 'done':
          return settle(thread, message.id, ({ resolve }) => resolve(message.answer))
        case 'error':
          return settle(thread, message.id, ({ reject }) => reject(fromWire(message.error)))
      }
    })
    worker.on('error', (error) => {
      lastError = error instanceof Error ? error.message : String(error)
    })
    worker.on('exit', () => {
      const wasReady = thread.state === 'ready'
      thread.state = 'gone'
      const crash = new RankError(
        'WORKER_CRASHED',
        `inference worker ${index} crashed: ${lastError}`,
      )
      ready.reject(crash)
      for (const id of [...thread.jobs.keys()]) settle(thread, id, ({ reject }) => reject(crash))
      // A replacement that dies before it serves is its own `replace`'s to try again.
      if (closing || !wasReady || threads[index] !== thread) return
      onEvent({ kind: 'crash', worker: index, error: lastError })
      const replacing = replace(index).finally(() => replacements.delete(replacing))
      replacements.add(replacing)
    })
    return thread
  }

  const settle = (thread: Thread, id: number, how: (pending: Pending) => void): void => {
    const pending = thread.jobs.get(id)
    if (pending === undefined) return
    thread.jobs.delete(id)
    thread.load -= pending.cost
    how(pending)
  }

  const replace = async (index: number): Promise<void> => {
    for (
      let pauseMs = FIRST_RETRY_MS;
      !closing;
      pauseMs = Math.min(2 * pauseMs, LONGEST_RETRY_MS)
    ) {
      let thread: Thread | undefined
      try {
        thread = start(index)
        await thread.ready
        if (closing) return stop(thread)
        if (warmUpShapes !== undefined) {
          await send(thread, { kind: 'warmUp', shapes: warmUpShapes }, 0)
        }
        if (closing) return stop(thread)
        threads[index] = thread
        restarts++
        return onEvent({ kind: 'restarted', worker: index })
      } catch (error) {
        const why = error instanceof Error ? error.message : String(error)
        onEvent({ kind: 'notRestarted', worker: index, error: why, pauseMs })
        if (thread !== undefined) await stop(thread)
        await pause(pauseMs, closed.promise)
      }
    }
  }

  const send = <K extends Job['kind']>(
    thread: Thread,
    job: Extract<Job, { kind: K }>,
    cost: number,
    signal?: AbortSignal,
  ): Promise<Answer[K]> => {
    if (thread.state !== 'ready') {
      const message = `inference worker ${thread.index} is gone`
      return Promise.reject(new RankError('WORKER_CRASHED', message))
    }
    const id = nextId++
    const answer = new Promise<Answer[K]>((resolve, reject) => {
      // The worker answers a job of kind K with Answer[K]: the one place that this is taken on trust.
      thread.jobs.set(id, { cost, resolve: resolve as Pending['resolve'], reject })
    })
    thread.load += cost
    post(thread, { kind: 'job', id, job })
    return unlessAborted(answer, signal).catch((error: unknown) => {
      // It counts as pending until the worker has dropped it, or done it: nothing stops a run.
      if (signal?.aborted && thread.state === 'ready') post(thread, { kind: 'cancel', id })
      throw error
    })
  }

  const leastLoaded = (): Thread => {
    const alive = threads.filter(({ state }) => state === 'ready')
    const [first, ...others] = alive
    if (first === undefined) {
      throw new RankError('WORKER_CRASHED', 'no inference worker is running')
    }
    return others.reduce((best, thread) => (thread.load < best.load ? thread : best), first)
  }

  const holderOf = (handle: KvHandle) => {
    const holder = handles.get(handle)
    if (holder === undefined) throw new RankError('INTERNAL', 'a K/V handle of another engine')
    return holder
  }

  const keep = (thread: Thread, id: number, tokens: number, bytes: number): KvHandle => {
    const handle: KvHandle = { tokens, bytes, device }
    handles.set(handle, { thread, id })
    return handle
  }

  if (provider === 'cuda') keepFloat32Exact()
  for (let i = 0; i < workers; i++) threads.push(start(i))
  let device: 'cpu' | 'cuda'
  try {
    const providers = await Promise.all(threads.map(({ ready }) => ready))
    device = providers[0] ?? 'cpu'
  } catch (error) {
    closing = true
    await Promise.allSettled(threads.map((thread) => stop(thread)))
    throw error
  }

  return {
    name: `node/${device}`,
    async prefill(history, past, signal) {
      signal?.throwIfAborted()
      const holder = past === undefined ? undefined : holderOf(past.handle)
      const thread = holder?.thread ?? leastLoaded()
      const id = nextId++
      const kept = past?.tokens ?? 0
      const job: Extract<Job, { kind: 'prefill' }> = {
        kind: 'prefill',
        handle: id,
        history: owned(history),
        ...(holder === undefined ? {} : { past: { handle: holder.id, tokens: kept } }),
      }
      try {
        const { bytes } = await send(thread, job, history.length, signal)
        return keep(thread, id, kept + history.length, bytes)
      } catch (error) {
        // A prefill that was cancelled while it ran still makes its K/V, before it reads this.
        if (signal?.aborted && thread.state === 'ready')
          post(thread, { kind: 'release', handle: id })
        throw error
      }
    },
    async score(handle, candidates, queryTime, signal) {
      signal?.throwIfAborted()
      const { thread, id } = holderOf(handle)
      const job = { kind: 'score', handle: id, candidates: candidates.slice(), queryTime } as const
      const { logits } = await send(thread, job, candidates.length / slots, signal)
      return logits
    },
    async rank(users, signal) {
      signal?.throwIfAborted()
      const cost = users.reduce((sum, u) => sum + u.history.length + u.candidates.length / slots, 0)
      const job = { kind: 'rank', users } as const
      const { logits } = await send(leastLoaded(), job, cost, signal)
      return logits
    },
    async exportKv(handle, start = 0) {
      const { thread, id } = holderOf(handle)
      const { pages } = await send(thread, { kind: 'export', handle: id, start }, 1)
      return pages
    },
    async importKv(pages) {
      const thread = leastLoaded()
      const id = nextId++
      const { bytes } = await send(thread, { kind: 'import', handle: id, pages }, 1)
      return keep(thread, id, pages.tokens, bytes)
    },
    release(handle) {
      const { thread, id } = holderOf(handle)
      if (thread.state === 'ready') post(thread, { kind: 'release', handle: id })
    },
    isAlive: (handle) => handles.get(handle)?.thread.state === 'ready',
    async warmUp(shapes) {
      warmUpShapes = shapes
      await Promise.all(threads.map((thread) => send(thread, { kind: 'warmUp', shapes }, 0)))
    },
    stats: () => ({
      workers: threads.filter(({ state }) => state === 'ready').length,
      pendingJobs: threads.reduce((sum, { jobs }) => sum + jobs.size, 0),
      restarts,
    }),
    async close() {
      closing = true
      closed.resolve()
      await Promise.all([...threads.map((thread) => stop(thread)), ...replacements])
    },
    threads: () => threads.map(({ worker }) => worker),
  }
}

/**
 * ONNX Runtime's CUDA provider multiplies float32 in TF32, which the binding has no option against;
 * cuBLAS obeys this variable. Set here because a worker thread only changes its copy of the
 * environment.
 */
function keepFloat32Exact(): void {
  process.env.NVIDIA_TF32_OVERRIDE ??= '0'
}

/** Asks a worker to end behind its last job; never terminate(), which aborts inside an inference. */
async function stop(thread: Thread): Promise<void> {
  if (thread.state === 'gone') return
  const gone = new Promise<void>((resolve) => thread.worker.once('exit', () => resolve()))
  post(thread, { kind: 'close' })
  await gone
}

function post({ worker }: Thread, message: ToWorker): void {
  worker.postMessage(message)
}

/** Views are copied: a message would otherwise carry the whole buffer behind them. */
function owned({ rows, actions, times, length }: Parameters<Engine['prefill']>[0]) {
  return { rows: rows.slice(), actions: actions.slice(), times: times.slice(), length }
}
