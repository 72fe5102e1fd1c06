import { availableParallelism } from 'node:os'

export type EngineKind = 'capi' | 'node'
export type Threads = { readonly workers: number; readonly threadsPerWorker: number }
/**
 * On an H200 1,602 runs/s (8 layers, width 1,024, 256 candidates) against 440 one by one: the host
 * prepares a run while the GPU is at another.
 */
const CUDA_RUNS = 4
/**
 * Of `capi` on CPUs, unless more are asked for: further cores help the runs that there are. 256
 * candidates of the demo take 0.75 of the time on two threads.
 */
const MOST_CPU_RUNS = 3

/**
 * Runs at a time (`workers`) and threads of each. A given number wins, 0 is chosen:
 * `node` on CPUs takes one worker per core with one thread each, which gave the most requests per
 * second; workers x threads beyond the cores gave the worst tail. On CUDA it takes one worker, because
 * sessions of several would each hold the weights. Runs of `capi` share them.
 */
export function chooseThreads(
  kind: EngineKind,
  provider: 'cpu' | 'cuda',
  workers: number,
  threadsPerWorker: number,
  cores: number = availableParallelism(),
): Threads {
  if (provider === 'cuda') {
    const runs = kind === 'capi' ? CUDA_RUNS : 1
    return { workers: workers || runs, threadsPerWorker: threadsPerWorker || 1 }
  }
  const most = kind === 'capi' ? MOST_CPU_RUNS : Number.POSITIVE_INFINITY
  const fitting = Math.max(1, Math.floor(cores / (threadsPerWorker || 1)))
  const runs = workers || Math.min(fitting, most)
  return {
    workers: runs,
    threadsPerWorker: threadsPerWorker || Math.max(1, Math.floor(cores / runs)),
  }
}
