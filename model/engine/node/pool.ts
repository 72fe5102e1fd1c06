import type { Worker } from 'node:worker_threads'
import { deferred, pause } from '../../deferred.js'
import { RankError } from '../../errors.js'
import type { Bundle } from '../../manifest.js'
import type { Engine, EngineEvent, KvHandle, WarmUp } from '../engine.js'
import { checkedKv } from '../kv-shape.js'
import type { Job, WorkerOptions } from './protocol.js'
import { startThread, type Thread } from './thread.js'

/** A replacement that does not start is tried again for ever, after pauses that double. */
const FIRST_RETRY_MS = 100
const LONGEST_RETRY_MS = 30_000

/** Items of a candidate list that cost about as much as one candidate or token. */
const ITEMS_PER_CANDIDATE = 1024

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
  let nextHandle = 1
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
    const thread = startThread(index, workerData, {
      onWarning: (warning) => onEvent({ kind: 'provider', warning }),
      onExit(error) {
        // A replacement that dies before it serves is its own `replace`'s to try again.
        if (closing || threads[index] !== thread) return
        onEvent({ kind: 'crash', worker: index, error })
        const replacing = replace(index).finally(() => replacements.delete(replacing))
        replacements.add(replacing)
      },
    })
    return thread
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
        if (closing) return thread.stop()
        if (warmUpShapes !== undefined) {
          await thread.send({ kind: 'warmUp', shapes: warmUpShapes }, 0)
        }
        if (closing) return thread.stop()
        threads[index] = thread
        restarts++
        return onEvent({ kind: 'restarted', worker: index })
      } catch (error) {
        const why = error instanceof Error ? error.message : String(error)
        onEvent({ kind: 'notRestarted', worker: index, error: why, pauseMs })
        await thread?.stop()
        await pause(pauseMs, closed.promise)
      }
    }
  }

  const leastLoaded = (): Thread => {
    const alive = threads.filter((thread) => thread.isReady())
    const [first, ...others] = alive
    if (first === undefined) {
      throw new RankError('WORKER_CRASHED', 'no inference worker is running')
    }
    return others.reduce((best, thread) => (thread.load() < best.load() ? thread : best), first)
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
    await Promise.allSettled(threads.map((thread) => thread.stop()))
    throw error
  }

  return {
    name: `node/${device}`,
    kvPrecision: bundle.manifest.precision,
    async prefill(history, past, signal) {
      signal?.throwIfAborted()
      const holder = past === undefined ? undefined : holderOf(past.handle)
      const thread = holder?.thread ?? leastLoaded()
      const id = nextHandle++
      const kept = past?.tokens ?? 0
      const job: Extract<Job, { kind: 'prefill' }> = {
        kind: 'prefill',
        handle: id,
        history: owned(history),
        ...(holder === undefined ? {} : { past: { handle: holder.id, tokens: kept } }),
      }
      try {
        const { bytes } = await thread.send(job, history.length, signal)
        return keep(thread, id, kept + history.length, bytes)
      } catch (error) {
        // A prefill that was cancelled while it ran still makes its K/V, before it reads this.
        if (signal?.aborted) thread.release(id)
        throw error
      }
    },
    async score(handle, candidates, queryTime, signal) {
      signal?.throwIfAborted()
      const { thread, id } = holderOf(handle)
      const job = { kind: 'score', handle: id, candidates: candidates.slice(), queryTime } as const
      const { logits } = await thread.send(job, candidates.length / slots, signal)
      return logits
    },
    async rank(users, signal) {
      signal?.throwIfAborted()
      const cost = users.reduce((sum, u) => sum + u.history.length + u.candidates.length / slots, 0)
      const job = { kind: 'rank', users } as const
      const { logits } = await leastLoaded().send(job, cost, signal)
      return logits
    },
    async encode(handle, row, queryTime, signal) {
      signal?.throwIfAborted()
      const { thread, id } = holderOf(handle)
      const job = { kind: 'encode', handle: id, row: row.slice(), queryTime } as const
      const { user } = await thread.send(job, 1, signal)
      return user
    },
    async retrieve(user, chunk, signal) {
      signal?.throwIfAborted()
      // An item costs a product, a candidate all layers.
      const cost = Math.ceil(chunk.count / ITEMS_PER_CANDIDATE)
      const { best } = await leastLoaded().send({ kind: 'retrieve', user, chunk }, cost, signal)
      return best
    },
    async exportKv(handle, start = 0) {
      const { thread, id } = holderOf(handle)
      const { pages } = await thread.send({ kind: 'export', handle: id, start }, 1)
      return pages
    },
    async importKv(given) {
      const { config, precision } = bundle.manifest
      const kv = checkedKv(given, config, precision)
      const thread = leastLoaded()
      const id = nextHandle++
      const { bytes } = await thread.send({ kind: 'import', handle: id, kv }, 1)
      return keep(thread, id, kv.tokens, bytes)
    },
    release(handle) {
      const { thread, id } = holderOf(handle)
      thread.release(id)
    },
    isAlive: (handle) => handles.get(handle)?.thread.isReady() ?? false,
    async warmUp(shapes) {
      warmUpShapes = shapes
      await Promise.all(threads.map((thread) => thread.send({ kind: 'warmUp', shapes }, 0)))
    },
    stats: () => ({
      workers: threads.filter((thread) => thread.isReady()).length,
      pendingJobs: threads.reduce((sum, thread) => sum + thread.pendingJobs(), 0),
      restarts,
    }),
    async close() {
      closing = true
      closed.resolve()
      await Promise.all([...threads.map((thread) => thread.stop()), ...replacements])
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

/** Views are copied: a message would otherwise carry the whole buffer behind them. */
function owned({ rows, actions, times, length }: Parameters<Engine['prefill']>[0]) {
  return { rows: rows.slice(), actions: actions.slice(), times: times.slice(), length }
}
