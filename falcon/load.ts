import { createNodeEngine, type EngineEvent } from '../model/engine/node/pool.js'
import { chooseThreads } from '../model/engine/threads.js'
import { openBundle } from '../model/manifest.js'
import { type CalibrationPoint, calibrate } from './calibrate.js'
import { createRanker } from './rank.js'
import type { Ranker } from './types.js'
import { verifyBundle } from './verify.js'

export type LoadOptions = {
  /** Folder of the bundle. */
  readonly bundle: string
  readonly provider: 'cpu' | 'cuda'
  readonly deviceId: number
  readonly cudaFallback: boolean
  /** 0 = chosen from the cores. */
  readonly workers: number
  readonly threadsPerWorker: number
  /** 0 = calibrated at start-up. */
  readonly microBatchSize: number
  readonly maxKvBytes: number
  readonly onEvent?: (event: LoadEvent) => void
}

/** What happens while a bundle gets ready, for logs. */
export type LoadEvent =
  | EngineEvent
  | {
      readonly kind: 'engine'
      readonly name: string
      readonly workers: number
      readonly threadsPerWorker: number
    }
  | {
      readonly kind: 'calibrated'
      readonly microBatchSize: number
      readonly points: readonly CalibrationPoint[]
    }
  | { readonly kind: 'verified'; readonly cases: number; readonly maxDifference: number }

/**
 * Opens a bundle and makes it ready to serve: every worker loaded and warm, its test vectors
 * matched, b chosen.
 * @throws {RankError} BUNDLE_INVALID, CONFIG_INVALID, MODEL_CONTRACT, ENGINE_UNAVAILABLE
 */
export async function loadRanker(options: LoadOptions): Promise<Ranker> {
  const { onEvent = () => {} } = options
  const bundle = openBundle(options.bundle)
  const { manifest } = bundle
  const threads = chooseThreads(options.provider, options.workers, options.threadsPerWorker)
  const engine = await createNodeEngine({ ...options, ...threads, bundle, onEvent })
  onEvent({ kind: 'engine', name: engine.name, ...threads })
  try {
    const { cases, maxDifference } = await verifyBundle(engine, bundle)
    onEvent({ kind: 'verified', cases, maxDifference })
    let { microBatchSize } = options
    if (microBatchSize === 0) {
      const calibration = await calibrate(engine, manifest)
      microBatchSize = calibration.microBatchSize
      onEvent({ kind: 'calibrated', ...calibration })
    }
    const { maxTokens } = manifest.config
    await engine.warmUp({
      historyTokens: [maxTokens, Math.ceil(maxTokens / 4), 2].filter((n) => n <= maxTokens),
      candidates: [microBatchSize, Math.ceil(microBatchSize / 2), 1],
    })
    return createRanker({ engine, bundle, microBatchSize, maxKvBytes: options.maxKvBytes })
  } catch (error) {
    await engine.close()
    throw error
  }
}
