import { RankError } from '../../errors.js'
import { loadLibrary } from './native.js'

/** By the name that the provider's own build of it asks for. */
const NAMES = ['libcudart.so.13', 'libcudart.so.12']
/** Either side of a copy is told by its address. */
export const MEMCPY_DEFAULT = 4
export const DEFAULT_STREAM = 0n

/**
 * Name of the first CUDA runtime that loads; nothing of CUDA has started yet.
 * @throws {RankError} ENGINE_UNAVAILABLE
 */
export function findCudaRuntime(): string {
  const faults: string[] = []
  for (const name of NAMES) {
    try {
      loadLibrary(name)
      return name
    } catch (error) {
      faults.push(error instanceof Error ? error.message : String(error))
    }
  }
  throw new RankError(
    'ENGINE_UNAVAILABLE',
    `the CUDA runtime does not load (${faults.join('; ')}): expected it on LD_LIBRARY_PATH`,
  )
}

/** The runtime's functions, by a name that `findCudaRuntime` gave. */
export function bindCudaRuntime(library: string) {
  const runtime = loadLibrary(library)
  const errorString = runtime.func('cudaGetErrorString', 'const char*', ['int'])
  const forget = runtime.func('cudaGetLastError', 'int', [])
  return {
    /** A function that answers with a code for `check`. */
    bind: (name: string, ...params: string[]) => runtime.func(name, 'int', params),
    /** @throws {RankError} ENGINE_UNAVAILABLE unless the code is cudaSuccess */
    check(code: number): void {
      if (code === 0) return
      // ONNX Runtime asks for the thread's last error behind its launches, and would take this one for its own.
      forget()
      throw new RankError('ENGINE_UNAVAILABLE', `CUDA: ${errorString(code)}`)
    },
  }
}
