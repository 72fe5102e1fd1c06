import { RankError } from '../errors.js'
import type { Bundle } from '../manifest.js'
import type { CapiEngineOptions } from './capi/engine.js'
import type { Engine, EngineEvent } from './engine.js'
import { kernelFolder } from './kernel-folder.js'
import { createNodeEngine } from './node/pool.js'
import { chooseThreads, type EngineKind } from './threads.js'

export const ENGINES = ['auto', 'capi', 'node'] as const
/** `auto`: `capi` where it runs, else `node`. */
export type EngineChoice = (typeof ENGINES)[number]

export type EngineOptions = {
  readonly bundle: Bundle
  /** `auto` when absent. */
  readonly engine?: EngineChoice
  /** Runs at a time; chosen for the engine that runs when 0 or absent, as `threadsPerWorker`. */
  readonly workers?: number
  readonly threadsPerWorker?: number
  /** `cpu` when absent. */
  readonly provider?: 'cpu' | 'cuda'
  readonly deviceId?: number
  /** Use the CPU when the CUDA provider is missing, instead of failing. */
  readonly cudaFallback?: boolean
  /**
   * K/V on the GPU, in bytes; the least recently used beyond it goes to pinned host memory. Half of
   * what is free after loading when 0 or absent.
   */
  readonly gpuKvBytes?: number
  /** For `capi`: limit of each session's arena on the GPU, in bytes; none when absent. */
  readonly gpuMemoryBytes?: number
  /** For `capi`: `auto`, `off` or a folder of kernel libraries with their kernels.json; `off` when absent. */
  readonly kernels?: string
  /** ONNX Runtime's shared library for `capi`, 1.29 or later; onnxruntime-node's own when absent. */
  readonly library?: string
  /** For `capi` on the CPU: starts beside live traffic; see `Engine.background`. */
  readonly background?: boolean
  readonly onEvent?: (event: EngineEvent) => void
}

/**
 * The engine asked for; the event `engine` says which one it became.
 * @throws {RankError} MODEL_CONTRACT, ENGINE_UNAVAILABLE
 */
export async function createEngine(options: EngineOptions): Promise<Engine> {
  const { engine = 'auto', onEvent = () => {} } = options
  if (engine === 'node') return start('node', createNodeEngine, options)
  let capi: Capi | undefined
  try {
    capi = await loadCapi(options.library)
    return await start('capi', capi.createCapiEngine, options)
  } catch (error) {
    if (!isUnavailable(error)) throw error
    // Where the library itself is missing the CPU does not help, and `node` may have CUDA.
    if (capi !== undefined && options.provider === 'cuda' && options.cudaFallback) {
      onEvent({ kind: 'provider', warning: `${error.message}; running on the CPU` })
      return createEngine({ ...options, provider: 'cpu' })
    }
    if (engine === 'capi') throw error
    onEvent({ kind: 'engineFallback', warning: `engine node instead of capi: ${error.message}` })
    return start('node', createNodeEngine, options)
  }
}

async function start(
  kind: EngineKind,
  create: (options: CapiEngineOptions) => Promise<Engine>,
  options: EngineOptions,
): Promise<Engine> {
  const { gpuKvBytes = 0, onEvent = () => {}, provider = 'cpu', kernels, ...rest } = options
  const threads = chooseThreads(kind, provider, rest.workers ?? 0, rest.threadsPerWorker ?? 0)
  const budget = gpuKvBytes > 0 ? { gpuKvBytes } : {}
  const folder = kernelFolder(kernels ?? 'off', provider)
  const library = folder === undefined ? {} : { kernels: folder }
  const engine = await create({ ...rest, ...threads, provider, onEvent, ...budget, ...library })
  onEvent({ kind: 'engine', name: engine.name, ...threads })
  return engine
}

type Capi = typeof import('./capi/engine.js')

/** Loaded only when it is wanted: koffi's own library is not there for every platform. */
async function loadCapi(library: string | undefined): Promise<Capi> {
  const modules = [
    import('./capi/engine.js'),
    import('./capi/library.js'),
    import('./capi/ort.js'),
  ] as const
  const [capi, { findLibrary }, { loadOrt }] = await Promise.all(modules).catch((cause) => {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RankError('ENGINE_UNAVAILABLE', `engine capi does not load: ${why}`, { cause })
  })
  loadOrt(library ?? findLibrary())
  return capi
}

function isUnavailable(error: unknown): error is RankError {
  return error instanceof RankError && error.code === 'ENGINE_UNAVAILABLE'
}
