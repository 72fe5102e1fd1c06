import { lowerPriority } from '../priority.js'
import { callAsync, loadLibrary } from './native.js'

/** They all start with the first job. */
const POOL_THREADS = poolThreadsOf(process.env.UV_THREADPOOL_SIZE)
const MAX_ROUNDS = 100

/**
 * Gives the threads of libuv's pool, where sessions are made, a lower priority, and so the threads that
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

/** As libuv reads UV_THREADPOOL_SIZE: 4 when absent, 1 to 1,024, and 1 for what is no number. */
export function poolThreadsOf(text: string | undefined): number {
  if (text === undefined) return 4
  const size = Number.parseInt(text, 10)
  return Math.min(1024, Math.max(1, Number.isNaN(size) ? 1 : size))
}
