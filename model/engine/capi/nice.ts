import { lowerPriority } from '../priority.js'
import { poolThreadsOf } from '../threads.js'
import { callAsync, loadLibrary } from './native.js'

/** They all start with the first job. */
export const POOL_THREADS = poolThreadsOf(process.env.UV_THREADPOOL_SIZE)
const MAX_ROUNDS = 100

/**
 * Gives the threads of libuv's pool, where runs take place, a lower priority, and so the threads that
 * ONNX Runtime starts from them. They are found by asking each for its id until all have answered.
 */
export function niceThreads(): Promise<void> {
  nicing ??= nice()
  return nicing
}

/** Once per process: later on the questions would queue behind runs. */
let nicing: Promise<void> | undefined

async function nice(): Promise<void> {
  const gettid = loadLibrary(null).func('gettid', 'int', [])
  const ask = () => callAsync<number>(gettid)
  const ids = new Set<number>()
  for (let round = 0; round < MAX_ROUNDS && ids.size < POOL_THREADS; round++) {
    for (const id of await Promise.all(Array.from({ length: POOL_THREADS }, ask))) ids.add(id)
  }
  // On Linux a thread's id names that thread alone.
  for (const id of ids) lowerPriority(id)
}
