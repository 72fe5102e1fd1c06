import { availableParallelism } from 'node:os'

export type EngineKind = 'capi' | 'node'
export type Threads = { readonly workers: number; readonly threadsPerWorker: number }
/** Cores, and the threads of libuv's pool. */
export type Machine = { readonly cores: number; readonly poolThreads: number }

/**
 * On an H200 1,602 runs/s (8 layers, width 1,024, 256 candidates) against 440 one by one: the host
 * prepares a run while the GPU is at another.
 */
const CUDA_RUNS = 4

/**
 * Runs at a time (`workers`) and threads of each. A given number wins, 0 is chosen:
 * `node` on CPUs takes one worker per core with one thread each, which gave the most requests per
 * second; workers x threads beyond the cores gave the worst tail. On CUDA it takes one worker, because
 * sessions of several would each hold the weights. A run of `capi` takes a thread of libuv's pool and
 * all runs share one set of weights: on CPUs it leaves one of the pool's threads to files and DNS,
 * whatever is given, and makes up for it with threads per run.
 */
export function chooseThreads(
  kind: EngineKind,
  provider: 'cpu' | 'cuda',
  workers: number,
  threadsPerWorker: number,
  { cores, poolThreads }: Machine = thisMachine(),
): Threads {
  if (provider === 'cuda') {
    const runs = kind === 'capi' ? CUDA_RUNS : 1
    return { workers: workers || runs, threadsPerWorker: threadsPerWorker || 1 }
  }
  const most = kind === 'capi' ? Math.max(1, poolThreads - 1) : Number.POSITIVE_INFINITY
  const fitting = Math.max(1, Math.floor(cores / (threadsPerWorker || 1)))
  const runs = Math.min(workers || fitting, most)
  return {
    workers: runs,
    threadsPerWorker: threadsPerWorker || Math.max(1, Math.floor(cores / runs)),
  }
}

function thisMachine(): Machine {
  return {
    cores: availableParallelism(),
    poolThreads: poolThreadsOf(process.env.UV_THREADPOOL_SIZE),
  }
}

/** As libuv reads UV_THREADPOOL_SIZE: 4 when absent, 1 to 1,024, and 1 for what is no number. */
export function poolThreadsOf(text: string | undefined): number {
  if (text === undefined) return 4
  const size = Number.parseInt(text, 10)
  return Math.min(1024, Math.max(1, Number.isNaN(size) ? 1 : size))
}
