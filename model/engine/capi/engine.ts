import { RankError } from '../../errors.js'
import type { Bundle } from '../../manifest.js'
import type { Engine, EngineEvent, KvHandle, KvPast, RankUser } from '../engine.js'
import { createBatcher } from './batch.js'
import { chooseBatchLimit, largestBatch } from './batch-limit.js'
import { bucketOf } from './buckets.js'
import { watchDevice } from './device-watch.js'
import type { KvEntry } from './kv-store.js'
import { createLanes, type Lanes } from './lanes.js'
import { trimMemory } from './memory.js'
import { open } from './open.js'
import type { Pointer } from './ort.js'
import { burst, fillArenas, runShapes } from './warm-up.js'

export type CapiEngineOptions = {
  readonly bundle: Bundle
  /** Runs at a time. 1 when absent. */
  readonly workers?: number
  /** Threads per run, on average: all runs share one pool of them. 1 when absent. */
  readonly threadsPerWorker?: number
  /** `cpu` when absent. */
  readonly provider?: 'cpu' | 'cuda'
  readonly deviceId?: number
  /** K/V on the GPU, in bytes; the least recently used beyond it goes to pinned host memory. */
  readonly gpuKvBytes?: number
  /** Limit of each session's arena on the GPU, in bytes; none when absent. */
  readonly gpuMemoryBytes?: number
  /**
   * The largest embedding table that goes to the GPU, in bytes; half of its free memory when absent. A
   * larger one stays on the host, as its file's pages or in pinned memory, and the GPU reads the rows that it
   * needs from there.
   */
  readonly gpuTableBytes?: number
  /** Most users of one-pass ranking in one run; measured on a GPU and 1 on a CPU when absent. */
  readonly maxBatchUsers?: number
  /** Threads with captured CUDA graphs; 1 on a GPU and 0 on a CPU when absent. */
  readonly lanes?: number
  /** ONNX Runtime's shared library, 1.29 or later; onnxruntime-node's own when absent. */
  readonly library?: string
  /** Folder of kernel libraries with their kernels.json; the graphs' own functions run when absent. */
  readonly kernels?: string
  /** On the CPU: starts beside live traffic; see `Engine.background`. */
  readonly background?: boolean
  readonly onEvent?: (event: EngineEvent) => void
}

type Held = { readonly entry: KvEntry; isReleased: boolean }

/**
 * ONNX Runtime through its C API: asynchronous runs on one set of sessions, one copy of the weights,
 * K/V outside of JavaScript's heap and, on a GPU, in its memory.
 * @throws {RankError} MODEL_CONTRACT, ENGINE_UNAVAILABLE
 */
export async function createCapiEngine(options: CapiEngineOptions): Promise<Engine> {
  const { bundle, workers = 1, threadsPerWorker = 1, provider = 'cpu' } = options
  const { onEvent = () => {}, lanes: laneCount = provider === 'cuda' ? 1 : 0 } = options
  const { slots } = bundle.manifest.embedding
  const opened = await open({
    ...{ bundle, workers, threadsPerWorker, provider },
    deviceId: options.deviceId ?? 0,
    gpuKvBytes: options.gpuKvBytes ?? 0,
    gpuMemoryBytes: options.gpuMemoryBytes ?? 0,
    gpuTableBytes: options.gpuTableBytes,
    onHostTable: (bytes, isCopy) => onEvent({ kind: 'hostTable', bytes, isCopy }),
    library: options.library,
    kernels: options.kernels,
    background: options.background ?? false,
  })
  const { blocks, store, decoder, runner, scheduler, none } = opened
  const { found, refusal } = opened.kernels ?? {}
  if (found !== undefined) {
    const { library } = found
    if (refusal === undefined) onEvent({ kind: 'kernels', ...found })
    else onEvent({ kind: 'kernelsRefused', library, warning: `${library} not used: ${refusal}` })
  }
  const handles = new WeakMap<KvHandle, Held>()
  const batches = { runs: 0, users: 0 }
  let closing: Promise<void> | undefined
  let lanes: Lanes | undefined
  let batchLimit = options.maxBatchUsers ?? 1
  // The net under forgotten releases, not the way to release.
  const collected = new FinalizationRegistry((held: Held) => {
    if (held.isReleased || closing !== undefined) return
    held.isReleased = true
    onEvent({ kind: 'leakedHandle', tokens: held.entry.tokens })
    store.release(held.entry)
  })

  const heldBy = (handle: KvHandle): Held => {
    const held = handles.get(handle)
    if (held === undefined) throw new RankError('INTERNAL', 'a K/V handle of another engine')
    return held
  }
  const entryOf = (handle: KvHandle): KvEntry => {
    const { entry, isReleased } = heldBy(handle)
    if (closing !== undefined) throw new RankError('WORKER_CRASHED', 'the engine is closed')
    if (isReleased) throw new RankError('INTERNAL', 'this K/V handle was released')
    return entry
  }
  const keep = (entry: KvEntry): KvHandle => {
    const { tokens, block } = entry
    const handle: KvHandle = { tokens, bytes: block.bytes, device: provider }
    const held = { entry, isReleased: false }
    handles.set(handle, held)
    collected.register(handle, held)
    return handle
  }
  const pastOf = ({ handle, tokens }: KvPast) => {
    const entry = entryOf(handle)
    if (tokens <= entry.tokens) return { entry, tokens }
    throw new RankError('INTERNAL', `past has ${entry.tokens} tokens, asked for ${tokens}`)
  }
  /** Runs with an entry that stays whatever happens to its handle meanwhile. */
  const holding = async <T>(
    entry: KvEntry,
    work: (options: Pointer) => Promise<T>,
    signal?: AbortSignal,
    drop?: (result: T) => void,
  ): Promise<T> => {
    store.hold(entry)
    let hasStarted = false
    const job = scheduler.submit(
      async (runOptions) => {
        hasStarted = true
        try {
          return await work(runOptions)
        } finally {
          store.release(entry)
        }
      },
      signal,
      drop,
    )
    try {
      return await job
    } finally {
      if (!hasStarted) store.release(entry)
    }
  }
  const batcher = createBatcher<RankUser, Float32Array>({
    scheduler,
    key: ({ history, candidates }) =>
      `${bucketOf(history.length)} ${bucketOf(candidates.length / slots)}`,
    limit: (user) => Math.min(batchLimit, largestBatch(bundle.manifest, user)),
    run: (users, runOptions) => {
      batches.runs++
      batches.users += users.length
      return runner.rank(users, runOptions)
    },
  })

  const engine: Engine = {
    name: `capi/${provider}`,
    kvPrecision: opened.kvPrecision,
    ...(opened.background !== undefined && { background: opened.background }),
    async prefill(history, past, signal) {
      const from = past === undefined ? undefined : pastOf(past)
      const work = (runOptions: Pointer) => runner.prefill(history, from, runOptions, signal)
      // Aborted too late to stop it: nobody will get a handle to release.
      const drop = (entry: KvEntry) => store.abandon(entry, from?.tokens ?? 0)
      return keep(
        await (from === undefined
          ? scheduler.submit(work, signal, drop)
          : holding(from.entry, work, signal, drop)),
      )
    },
    async score(handle, candidates, queryTime, signal) {
      const entry = entryOf(handle)
      const used = entry.tokens === 0 ? none : entry
      const replayed =
        candidates.length === 0
          ? undefined
          : lanes?.idle()?.score(used, candidates, queryTime, signal)
      if (replayed !== undefined) return replayed
      return holding(
        used,
        (runOptions) => runner.score(used, candidates, queryTime, runOptions),
        signal,
      )
    },
    async rank(users, signal) {
      const [only] = users
      if (users.length !== 1 || only === undefined) {
        return scheduler.submit((runOptions) => runner.rank(users, runOptions), signal)
      }
      const replayed = only.candidates.length === 0 ? undefined : lanes?.idle()?.rank(only, signal)
      return [await (replayed ?? batcher.submit(only, signal))]
    },
    async encode(handle, row, queryTime, signal) {
      const entry = entryOf(handle)
      const used = entry.tokens === 0 ? none : entry
      return holding(used, (runOptions) => runner.encode(used, row, queryTime, runOptions), signal)
    },
    async retrieve(user, chunk, signal) {
      return scheduler.submit((runOptions) => runner.retrieve(user, chunk, runOptions), signal)
    },
    async exportKv(handle, start = 0) {
      const entry = entryOf(handle)
      return holding(entry, async () => {
        await blocks.beginRun(entry.block)
        try {
          return await store.export(entry, start)
        } finally {
          blocks.endRun(entry.block)
        }
      })
    },
    async importKv(kv) {
      const work = (runOptions: Pointer) =>
        store.import(kv, (encoded, entry) => decoder.decode(encoded, entry, runOptions))
      return keep(await scheduler.submit(work))
    },
    release(handle) {
      const held = heldBy(handle)
      if (held.isReleased) return
      held.isReleased = true
      if (closing === undefined) store.release(held.entry)
    },
    isAlive: (handle) => closing === undefined && handles.get(handle)?.isReleased === false,
    async warmUp(shapes) {
      await runShapes(engine, bundle.manifest, shapes)
      if (provider === 'cuda') {
        if (options.maxBatchUsers === undefined) {
          batchLimit = await chooseBatchLimit((limit) => {
            batchLimit = limit
            return burst(batcher.submit, bundle.manifest, shapes)
          })
        }
        await fillArenas(engine, bundle.manifest, shapes, { workers, batchLimit })
      }
      if (laneCount === 0 || lanes !== undefined) return
      const start = performance.now()
      try {
        lanes = await createLanes(opened, bundle, shapes, laneCount)
      } catch (error) {
        // Slower, not wrong: every run can also be a plain one.
        const why = error instanceof Error ? error.message : String(error)
        onEvent({ kind: 'provider', warning: `no CUDA graphs: ${why}` })
        return
      }
      opened.cleanups.push(lanes.close)
      const ms = Math.round(performance.now() - start)
      onEvent({ kind: 'captured', shapes: lanes.shapes, batchLimit, ms })
    },
    trim: trimMemory,
    stats: () => {
      const { homeBytes, overflowBytes, spills, restores } = blocks.stats()
      const gpu = { gpuBytes: homeBytes, gpuBudgetBytes: blocks.budgetBytes }
      const kv = { ...gpu, hostBytes: overflowBytes, spills, restores }
      return {
        workers: closing === undefined ? workers : 0,
        pendingJobs: scheduler.pending() + (lanes?.pending() ?? 0),
        restarts: 0,
        // Of the runs that lie ready one counts, not one per thread: whoever waits does so where the order can still change.
        // Where users share runs, the next run gathers while one is under way.
        depth:
          Math.min(scheduler.slots, workers + 1) +
          1 +
          (batchLimit > 1 ? 2 * batchLimit : 0) +
          laneCount,
        ...(provider === 'cuda' ? { kv } : {}),
        batches,
        ...(found !== undefined && refusal === undefined ? { kernels: found } : {}),
      }
    },
    close() {
      closing ??= opened.close()
      return closing
    },
  }
  const { cuda } = opened
  if (cuda === undefined) return engine
  return watchDevice({ ...engine, gpuMemory: cuda.memory }, cuda.freeBytes, onEvent)
}
