import { readFileSync } from 'node:fs'
import { type Bundle, hasRetrieval } from '../../manifest.js'
import type { KvPrecision } from '../codec/graphs.js'
import type { KvPages } from '../engine.js'
import { KV_ELEMENT_BYTES } from '../kv-shape.js'
import { type Background, startBackground } from './background.js'
import { canTakeBf16Kv } from './bf16-kv.js'
import { type Blocks, type BlocksOptions, createBlocks } from './blocks.js'
import { type Cuda, openCuda } from './cuda.js'
import { createKvDecoder, type KvDecoder } from './decoder.js'
import { cpuFlags, findKernels, type Kernels, refusalOf } from './kernels.js'
import { createKvStore, type KvEntry, type KvStore } from './kv-store.js'
import { fillsTiles, openKvTiles } from './kv-tiles.js'
import { findLibrary } from './library.js'
import { hostMemory, type TensorMemory, trimMemory } from './memory.js'
import { niceThreads } from './nice.js'
import { loadOrt, type Ort } from './ort.js'
import { startRunThreads } from './run-threads.js'
import { createRunner, type Runner } from './runner.js'
import { createScheduler, type Scheduler } from './scheduler.js'
import { createEnv, createSessions, type SessionSource } from './sessions.js'
import { slabMemory } from './slab.js'
import { shareWeights } from './weights.js'

/** See runner.ts; a GPU's matrix products want height (chunks of 2,048: 1.4 ms, of 256: 12.8 ms). */
const PREFILL_CHUNK_TOKENS = { cpu: 256, cuda: 8192 }
/** Share of the GPU's free memory that K/V may take when nobody says. */
const DEFAULT_GPU_KV_SHARE = 0.5

export type OpenOptions = {
  readonly bundle: Bundle
  readonly workers: number
  readonly threadsPerWorker: number
  readonly provider: 'cpu' | 'cuda'
  readonly deviceId: number
  readonly gpuKvBytes: number
  readonly gpuMemoryBytes: number
  readonly gpuTableBytes: number | undefined
  readonly onHostTable: (bytes: number, isCopy: boolean) => void
  readonly library: string | undefined
  /** Folder of kernel libraries: see kernels.ts. */
  readonly kernels: string | undefined
  /** On the CPU: starts on a thread of the lowest priority; see background.ts. */
  readonly background: boolean
}

/** Everything native that an engine is made of. */
export type Opened = {
  readonly ort: Ort
  readonly library: string
  readonly source: SessionSource
  /** A library that fits, and why it may not be used, if so. */
  readonly kernels: { readonly found: Kernels; readonly refusal: string | undefined } | undefined
  readonly kvPrecision: KvPrecision
  readonly background: Background | undefined
  readonly cuda: Cuda | undefined
  /** Where runs need their tensors: the GPU's memory or the process's own. */
  readonly memory: TensorMemory
  readonly blocks: Blocks
  readonly store: KvStore
  readonly decoder: KvDecoder
  readonly runner: Runner
  readonly scheduler: Scheduler
  /** One token without K and V, for histories of none. */
  readonly none: KvEntry
  /** Frees all of it, once nothing runs; also what `cleanups` got later, that first. */
  close(): Promise<void>
  readonly cleanups: (() => void | Promise<void>)[]
}

/** @throws {RankError} MODEL_CONTRACT, ENGINE_UNAVAILABLE */
export async function open(options: OpenOptions): Promise<Opened> {
  const { bundle, workers, threadsPerWorker, provider } = options
  const { manifest } = bundle
  const library = options.library ?? findLibrary()
  // Runs share the pool and bring their own thread each.
  const intraOpThreads = workers * (threadsPerWorker - 1) + 1
  const plain = loadOrt(library)
  const loaded = provider === 'cpu' ? { ...plain, run: startRunThreads(library, workers) } : plain
  const background =
    options.background && provider === 'cpu'
      ? startBackground(loaded, library, intraOpThreads === 1)
      : undefined
  const ort = background?.ort ?? loaded
  const cleanups: (() => void | Promise<void>)[] = []
  const close = async () => {
    for (const each of cleanups.splice(0).reverse()) await each()
    await trimMemory()
  }
  try {
    if (background !== undefined) cleanups.push(background.end)
    const env = createEnv(ort)
    cleanups.push(() => ort.ReleaseEnv(env))
    const host = hostMemory(ort)
    cleanups.push(host.close)
    let cuda: Cuda | undefined
    if (provider === 'cuda') {
      cuda = openCuda(ort, options.deviceId, {
        arenaBytes: options.gpuMemoryBytes,
        tableBytes: options.gpuTableBytes,
        onHostTable: options.onHostTable,
      })
      cleanups.push(cuda.close)
    } else {
      await niceThreads()
    }
    const weights = await shareWeights(ort, cuda ?? host, bundle, cuda?.upload)
    cleanups.push(weights.release)
    const kernels = kernelsFor(options, cuda)
    const registered = kernels?.refusal === undefined ? kernels?.found : undefined
    const kvPrecision = kvPrecisionOf(bundle, registered)
    const { config } = manifest
    const isBf16 = kvPrecision === 'bf16'
    const tiles =
      isBf16 && registered?.kvTiles && fillsTiles(config)
        ? openKvTiles(registered.library)
        : undefined
    const source: SessionSource = {
      ...{ ort, env, bundle, weights, kernels: registered?.library },
      ...(isBf16 && { bf16Kv: tiles === undefined ? 'rows' : { heads: config.heads } }),
    }
    const sessionOptions = {
      intraOpThreads,
      spin: workers === 1 && threadsPerWorker > 1,
      ...(cuda === undefined ? {} : { addProvider: cuda.addProvider }),
    }
    const { sessions, release } = await createSessions(
      source,
      ['prefill', 'score', 'rank'],
      sessionOptions,
    )
    cleanups.push(release)
    const retrieval = hasRetrieval(manifest)
      ? await createSessions(source, ['encode', 'retrieve'], sessionOptions)
      : undefined
    if (retrieval !== undefined) cleanups.push(retrieval.release)
    const memory = cuda?.device ?? host
    let kvOptions: BlocksOptions = { home: memory }
    if (cuda !== undefined) {
      const homeBytes = options.gpuKvBytes || Math.floor(DEFAULT_GPU_KV_SHARE * cuda.freeBytes())
      // Apart from the arenas, which K/V of many sizes would leave full of holes.
      const home = await slabMemory(memory, homeBytes)
      cleanups.push(home.close)
      kvOptions = { home, overflow: cuda.pinned, homeBytes }
    }
    const blocks = createBlocks(kvOptions)
    cleanups.push(blocks.close)
    const kvParts = { ort, host, config, precision: kvPrecision }
    const store = createKvStore({ ...kvParts, blocks, tiles })
    const pinned = cuda?.pinned
    const decoder = createKvDecoder({
      ...{ ...kvParts, env, store, pinned },
      kernels: isBf16 ? registered?.library : undefined,
    })
    cleanups.push(decoder.close)
    const none = await store.import(noTokens(bundle, kvPrecision), unencoded)
    cleanups.push(() => store.release(none))
    const prefillChunkTokens = PREFILL_CHUNK_TOKENS[provider]
    const runner = createRunner({
      ort,
      sessions,
      retrieval: retrieval?.sessions,
      store,
      blocks,
      host,
      manifest,
      prefillChunkTokens,
    })
    const scheduler = createScheduler(ort, slotsFor(options))
    cleanups.push(scheduler.close)
    return {
      ...{ ort, library, source, kernels, kvPrecision, background, cuda, memory, blocks, store },
      ...{ decoder, runner, scheduler, none, cleanups, close },
    }
  } catch (error) {
    await close()
    throw error
  }
}

function kernelsFor({ kernels, provider, bundle }: OpenOptions, cuda: Cuda | undefined) {
  if (kernels === undefined) return undefined
  const { precision, config } = bundle.manifest
  const chip = {
    ...{ provider, precision, cpuFlags: cpuFlags() },
    ...(cuda && { computeCapability: cuda.computeCapability }),
  }
  const found = findKernels(kernels, chip, config)
  return found && { found, refusal: refusalOf(found) }
}

/** bf16 where the registered kernels, if any, take K/V so and nothing else reads it. */
function kvPrecisionOf(
  { folder, manifest }: Bundle,
  registered: Pick<Kernels, 'kv'> | undefined,
): KvPrecision {
  const takesIt =
    registered?.kv === 'bf16' &&
    canTakeBf16Kv(readFileSync(`${folder}/${manifest.graphs.score.file}`))
  return takesIt ? 'bf16' : manifest.precision
}

/**
 * Runs under way. On a CPU with a thread per run the next of each thread lies ready: a thread that waited
 * for the event loop may be woken on another one's core, and two that share one stay there for long. With
 * one run ahead in all a quarter of 150 ms rounds had 0.7 of engine node's rate or less, with one each 0.94.
 */
function slotsFor({ workers, threadsPerWorker, provider }: OpenOptions): number {
  const isAhead = provider === 'cpu' && threadsPerWorker === 1 && workers > 1
  return isAhead ? 2 * workers : workers
}

async function unencoded(): Promise<never> {
  throw new Error("rows in the engine's precision need no decoder")
}

function noTokens({ manifest }: Bundle, precision: KvPrecision): KvPages {
  const { layers, heads, dqk, dv } = manifest.config
  const width = KV_ELEMENT_BYTES[precision]
  const layer = {
    k: new Uint8Array(heads * dqk * width),
    v: new Uint8Array(heads * dv * width),
  }
  return { tokens: 1, times: new Float64Array(1), layers: Array(layers).fill(layer) }
}
