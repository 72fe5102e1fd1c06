import { RankError } from '../errors.js'
import type { Bundle } from '../manifest.js'
import type { CapiEngineOptions } from './capi/engine.js'
import type { Engine, EngineEvent } from './engine.js'
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
  readonly onEvent?: (event: EngineEvent) => void
}

/**
 * The engine asked for; the event `engine` says which one it became.
 * @throws {RankError} MODEL_CONTRACT, ENGINE_UNAVAILABLE
 */
export async function createEngine(options: EngineOptions): Promise<Engine> {
  const { engine = 'auto', onEvent = () => {} } = options
  if (engine === 'node') return start('node', options)
  try {
    return await start('capi', options)
  } catch (error) {
    if (!isUnavailable(error)) throw error
    if (options.provider === 'cuda' && options.cudaFallback) {
      onEvent({ kind: 'provider', warning: `${error.message}; running on the CPU` })
      return createEngine({ ...options, provider: 'cpu' })
    }
    if (engine === 'capi') throw error
    onEvent({ kind: 'engineFallback', warning: `engine node instead of capi: ${error.message}` })
    return start('node', options)
  }
}

async function start(kind: EngineKind, options: EngineOptions): Promise<Engine> {
  const { gpuKvBytes = 0, onEvent = () => {}, provider = 'cpu', ...rest } = options
  const threads = chooseThreads(kind, provider, rest.workers ?? 0, rest.threadsPerWorker ?? 0)
  const all = { ...rest, ...threads, provider, onEvent, ...(gpuKvBytes > 0 ? { gpuKvBytes } : {}) }
  const engine = await (kind === 'capi' ? createCapi(all) : createNodeEngine(all))
  onEvent({ kind: 'engine', name: engine.name, ...threads })
  return engine
}

/** Loaded only when it is wanted: koffi's own library is not there for every platform. */
async function createCapi(options: CapiEngineOptions): Promise<Engine> {
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
