import { RankError } from '../../errors.js'
import type { Bundle } from '../../manifest.js'
import { zeroTokens } from '../../tokens.js'
import type { Engine, EngineEvent, KvHandle, KvPast, RankUser } from '../engine.js'
import { createBatcher } from './batch.js'
import { createBlocks } from './blocks.js'
import { type Cuda, openCuda } from './cuda.js'
import { createKvStore, type KvEntry } from './kv-store.js'
import { findLibrary } from './library.js'
import { hostMemory } from './memory.js'
import { niceThreads } from './nice.js'
import { loadOrt, type Pointer } from './ort.js'
import { createRunner } from './runner.js'
import { createScheduler } from './scheduler.js'
import { createSessions } from './sessions.js'
import { shareWeights } from './weights.js'

/** See runner.ts; on a GPU a prefill is one run: its matrix products want height. */
const PREFILL_CHUNK_TOKENS = { cpu: 256, cuda: 4096 }
/** Users of one batch are padded to one length: theirs differ by at most this share of it. */
const BUCKETS_PER_DOUBLING = 4
const SMALLEST_BUCKET = 64
/** Share of the GPU's free memory that K/V may take when nobody says. */
const DEFAULT_GPU_KV_SHARE = 0.5

export type CapiEngineOptions = {
  readonly bundle: Bundle
  /** Runs at a time; each takes one thread of libuv's pool. 1 when absent. */
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
  /** Most users of one-pass ranking in one run. */
  readonly maxBatchUsers?: number
  /** ONNX Runtime's shared library, 1.29 or later; onnxruntime-node's own when absent. */
  readonly library?: string
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
  const { onEvent = () => {} } = options
  const { manifest } = bundle
  const { slots } = manifest.embedding
  const ort = loadOrt(options.library ?? findLibrary())
  /** What close() undoes, last made first undone. */
  const cleanups: (() => void | Promise<void>)[] = []
  const cleanUp = async () => {
    for (const each of cleanups.splice(0).reverse()) await each()
  }
  try {
    const host = hostMemory(ort)
    cleanups.push(host.close)
    let cuda: Cuda | undefined
    if (provider === 'cuda') {
      cuda = openCuda(ort, options.deviceId ?? 0, options.gpuMemoryBytes ?? 0)
      cleanups.push(cuda.close)
    } else {
      await niceThreads()
    }
    const files = Object.values(manifest.graphs).map(({ file }) => file)
    const weights = shareWeights(ort, cuda ?? host, bundle.folder, files, cuda?.upload)
    cleanups.push(weights.release)
    const sessions = await createSessions(ort, bundle, weights, {
      // Runs share the pool and bring their own thread each.
      intraOpThreads: workers * (threadsPerWorker - 1) + 1,
      spin: workers === 1 && threadsPerWorker > 1,
      ...(cuda === undefined ? {} : { addProvider: cuda.addProvider }),
    })
    cleanups.push(sessions.release)
    const device = cuda?.memory(sessions.prefill.pointer)
    if (device !== undefined) cleanups.push(device.close)
    const blocks = createBlocks(
      cuda === undefined || device === undefined
        ? { home: host }
        : {
            home: device,
            overflow: cuda.pinned,
            homeBytes: options.gpuKvBytes ?? DEFAULT_GPU_KV_SHARE * cuda.freeBytes(),
          },
    )
    cleanups.push(blocks.close)
    const { config, precision } = manifest
    const store = createKvStore({ ort, blocks, host, config, precision })
    const runner = createRunner({
      ort,
      sessions,
      store,
      blocks,
      host,
      manifest,
      prefillChunkTokens: PREFILL_CHUNK_TOKENS[provider],
    })
    const none = await store.import(noTokens())
    cleanups.push(() => store.release(none))
    const scheduler = createScheduler(ort, workers)
    cleanups.push(scheduler.close)
    return start()

    function start(): Engine {
      const handles = new WeakMap<KvHandle, Held>()
      // The net under forgotten releases, not the way to release.
      const collected = new FinalizationRegistry((held: Held) => {
        if (held.isReleased || closing !== undefined) return
        held.isReleased = true
        onEvent({ kind: 'leakedHandle', tokens: held.entry.tokens })
        store.release(held.entry)
      })
      let closing: Promise<void> | undefined
      const batches = { runs: 0, users: 0 }

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
      /** Runs with an entry that stays whatever happens to its handle meanwhile. */
      const holding = async <T>(
        entry: KvEntry,
        work: (options: Pointer) => Promise<T>,
        signal: AbortSignal | undefined,
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
        limit: () => options.maxBatchUsers ?? 1,
        run: (users, runOptions) => {
          batches.runs++
          batches.users += users.length
          return runner.rank(users, runOptions)
        },
      })
      const engine: Engine = {
        name: `capi/${provider}`,
        async prefill(history, past, signal) {
          const from = past === undefined ? undefined : pastOf(past, entryOf)
          const work = (runOptions: Pointer) => runner.prefill(history, from, runOptions, signal)
          // Aborted too late to stop it: nobody will get a handle to release.
          const drop = (entry: KvEntry) => store.abandon(entry, from?.tokens ?? 0)
          const entry = await (from === undefined
            ? scheduler.submit(work, signal, drop)
            : holding(from.entry, work, signal, drop))
          return keep(entry)
        },
        async score(handle, candidates, queryTime, signal) {
          const entry = entryOf(handle)
          return holding(
            entry,
            (runOptions) => runner.score(entry, none, candidates, queryTime, runOptions),
            signal,
          )
        },
        async rank(users, signal) {
          const [only] = users
          if (users.length === 1 && only !== undefined) return [await batcher.submit(only, signal)]
          return scheduler.submit((runOptions) => runner.rank(users, runOptions), signal)
        },
        async exportKv(handle) {
          const entry = entryOf(handle)
          return holding(
            entry,
            async () => {
              await blocks.beginRun(entry.block)
              try {
                return await store.export(entry)
              } finally {
                blocks.endRun(entry.block)
              }
            },
            undefined,
          )
        },
        async importKv(pages) {
          return keep(await scheduler.submit(() => store.import(pages)))
        },
        release(handle) {
          const held = heldBy(handle)
          if (held.isReleased) return
          held.isReleased = true
          if (closing === undefined) store.release(held.entry)
        },
        isAlive: (handle) => closing === undefined && handles.get(handle)?.isReleased === false,
        async warmUp({ historyTokens, candidates }) {
          for (const n of historyTokens) {
            const handle = await engine.prefill(zeroTokens(n, slots))
            for (const m of candidates) await engine.score(handle, new Int32Array(m * slots), 0)
            engine.release(handle)
          }
        },
        stats: () => {
          const { homeBytes, overflowBytes, spills, restores } = blocks.stats()
          const kv = { gpuBytes: homeBytes, hostBytes: overflowBytes, spills, restores }
          return {
            workers: closing === undefined ? workers : 0,
            pendingJobs: scheduler.pending(),
            restarts: 0,
            ...(provider === 'cuda' ? { kv } : {}),
            batches,
          }
        },
        close() {
          closing ??= cleanUp()
          return closing
        },
      }
      return engine
    }

    /** One token without K and V. */
    function noTokens() {
      const { layers, heads, dqk, dv } = config
      const bytes = precision === 'fp16' ? 2 : 4
      const layer = {
        k: new Uint8Array(heads * dqk * bytes),
        v: new Uint8Array(heads * dv * bytes),
      }
      return { tokens: 1, times: new Float64Array(1), layers: Array(layers).fill(layer) }
    }
  } catch (error) {
    await cleanUp()
    throw error
  }
}

function pastOf({ handle, tokens }: KvPast, entryOf: (handle: KvHandle) => KvEntry) {
  const entry = entryOf(handle)
  if (tokens > entry.tokens) {
    throw new RankError('INTERNAL', `past has ${entry.tokens} tokens, asked for ${tokens}`)
  }
  return { entry, tokens }
}

/** Lengths of one bucket differ by less than a quarter: what padding can cost at most. */
export function bucketOf(length: number): number {
  if (length <= SMALLEST_BUCKET) return SMALLEST_BUCKET
  const steps = Math.ceil(Math.log2(length / SMALLEST_BUCKET) * BUCKETS_PER_DOUBLING)
  return Math.round(SMALLEST_BUCKET * 2 ** (steps / BUCKETS_PER_DOUBLING))
}
