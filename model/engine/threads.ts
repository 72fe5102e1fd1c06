import { availableParallelism } from 'node:os'

export type Threads = { readonly workers: number; readonly threadsPerWorker: number }

/**
 * Workers and threads of the engine `node`. On CPUs one worker per core with one thread each gave
 * the most requests per second, and workers x threads beyond the cores gave the worst tail; on CUDA
 * one worker, because sessions of several workers would each hold the weights. A given number wins.
 */
export function chooseThreads(
  provider: 'cpu' | 'cuda',
  workers: number,
  threadsPerWorker: number,
  cores = availableParallelism(),
): Threads {
  if (provider === 'cuda') return { workers: workers || 1, threadsPerWorker: threadsPerWorker || 1 }
  if (workers === 0 && threadsPerWorker === 0) return { workers: cores, threadsPerWorker: 1 }
  if (workers === 0)
    return { workers: Math.max(1, Math.floor(cores / threadsPerWorker)), threadsPerWorker }
  return { workers, threadsPerWorker: threadsPerWorker || Math.max(1, Math.floor(cores / workers)) }
}
