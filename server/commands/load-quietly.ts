import { type LoadOptions, loadRanker } from '../../falcon/load.js'
import type { Ranker } from '../../falcon/types.js'

const KV_BYTES = 2 ** 30

/** A ranker for a command line: CPU, everything chosen by itself. */
export function loadQuietly(bundle: string, options: Partial<LoadOptions> = {}): Promise<Ranker> {
  return loadRanker({
    bundle,
    provider: 'cpu',
    deviceId: 0,
    cudaFallback: false,
    workers: 0,
    threadsPerWorker: 0,
    microBatchSize: 0,
    maxKvBytes: KV_BYTES,
    ...options,
  })
}
