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
  readonly onEvent?: (event: EngineEvent) => void
}

/**
 * The engine asked for.
 * @throws {RankError} MODEL_CONTRACT, ENGINE_UNAVAILABLE
 */
export async function createEngine(options: EngineOptions): Promise<Engine> {
  const { engine = 'auto', onEvent = () => {} } = options
  if (engine === 'node') return createNodeEngine(options)
  try {
    return await createCapi(options)
  } catch (error) {
    if (!isUnavailable(error)) throw error
    if (options.provider === 'cuda' && options.cudaFallback) {
      onEvent({ kind: 'provider', warning: `${error.message}; running on the CPU` })
      return createEngine({ ...options, provider: 'cpu' })
    }
    if (engine === 'capi') throw error
    onEvent({ kind: 'engineFallback', warning: `engine node instead of capi: ${error.message}` })
    return createNodeEngine(options)
  }
}

/** Loaded only when it is wanted: koffi's own library is not there for every platform. */
async function createCapi(options: EngineOptions): Promise<Engine> {
  let capi: typeof import('./capi/engine.js')
  try {
    capi = await import('./capi/engine.js')
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RankError('ENGINE_UNAVAILABLE', `engine capi does not load: ${why}`, { cause })
  }
  return capi.createCapiEngine(options)
}

function isUnavailable(error: unknown): error is RankError {
  return error instanceof RankError && error.code === 'ENGINE_UNAVAILABLE'
}
