import { RankError } from '../errors.js'
import type { Bundle } from '../manifest.js'
import type { Engine, EngineEvent } from './engine.js'
import { createNodeEngine } from './node/pool.js'

export const ENGINES = ['auto', 'capi', 'node'] as const
/** `auto`: `capi` where it runs, else `node`. */
export type EngineChoice = (typeof ENGINES)[number]

export type EngineOptions = {
  readonly bundle: Bundle
  /** `auto` when absent. */
  readonly engine?: EngineChoice
  /** Runs at a time; 1 when absent, as `threadsPerWorker`: the least that runs. */
  readonly workers?: number
  readonly threadsPerWorker?: number
  /** `cpu` when absent. */
  readonly provider?: 'cpu' | 'cuda'
  readonly deviceId?: number
  /** Use the CPU when the CUDA provider is missing, instead of failing. */
  readonly cudaFallback?: boolean
  /** K/V on the GPU, in bytes; the least recently used beyond it goes to pinned host memory. */
  readonly gpuKvBytes?: number
  /** ONNX Runtime's shared library for `capi`, 1.29 or later; onnxruntime-node's own when absent. */
  readonly library?: string
  readonly onEvent?: (event: EngineEvent) => void
}

/**
 * The engine asked for.
 * @throws {RankError} MODEL_CONTRACT, ENGINE_UNAVAILABLE
 */
export async function createEngine(options: EngineOptions): Promise<Engine> {
  const { engine = 'auto', onEvent = () => {} } = options
  if (engine === 'node') return createNodeEngine(options)
  let capi: Capi | undefined
  try {
    capi = await loadCapi(options.library)
    return await capi.createCapiEngine(options)
  } catch (error) {
    if (!isUnavailable(error)) throw error
    // Where the library itself is missing the CPU does not help, and `node` may have CUDA.
    if (capi !== undefined && options.provider === 'cuda' && options.cudaFallback) {
      onEvent({ kind: 'provider', warning: `${error.message}; running on the CPU` })
      return createEngine({ ...options, provider: 'cpu' })
    }
    if (engine === 'capi') throw error
    onEvent({ kind: 'engineFallback', warning: `engine node instead of capi: ${error.message}` })
    return createNodeEngine(options)
  }
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
