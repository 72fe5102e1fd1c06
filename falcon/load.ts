import { createEngine, type EngineChoice } from '../model/engine/create.js'
import type { EngineEvent } from '../model/engine/engine.js'
import { openBundle } from '../model/manifest.js'
import { type CalibrationPoint, calibrate, measureCosts } from './calibrate.js'
import { type Costs, paysToKeep } from './policy.js'
import { createRanker } from './rank.js'
import type { Ranker } from './types.js'
import { verifyBundle } from './verify.js'

/** All but the bundle have defaults: CPU, everything else chosen by the machine. */
export type LoadOptions = {
  /** Folder of the bundle. */
  readonly bundle: string
  /** `auto` when absent: `capi` where it runs, else `node`. */
  readonly engine?: EngineChoice
  readonly provider?: 'cpu' | 'cuda'
  readonly deviceId?: number
  readonly cudaFallback?: boolean
  /** Kernel libraries: `auto`, `off` or a folder; `off` when absent. */
  readonly kernels?: string
  /** 0 = chosen from the cores. */
  readonly workers?: number
  readonly threadsPerWorker?: number
  /** K/V on the GPU, in bytes; 0 = half of what is free after loading. */
  readonly gpuKvBytes?: number
  /** 0 = calibrated at start-up. */
  readonly microBatchSize?: number
  /**
   * Budget of tier 1 in bytes, wherever the engine keeps it: the GPU's share is part of it. 0 = 512 MiB,
   * or on a GPU all that it has for K/V where that is more.
   */
  readonly maxKvBytes?: number
  readonly onEvent?: (event: LoadEvent) => void
}

/** Tier 1 when nobody says: a thousand users of the demo model, twenty of the paper's shape. */
const DEFAULT_KV_BYTES = 512 * 2 ** 20

/** What happens while a bundle gets ready, for logs. */
export type LoadEvent =
  | EngineEvent
  | {
      readonly kind: 'calibrated'
      readonly microBatchSize: number
      readonly points: readonly CalibrationPoint[]
    }
  /** What decides whether K/V is kept; measured on a GPU only. */
  | ({ readonly kind: 'policy'; readonly keepsKv: boolean } & Costs)
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
  const engine = await createEngine({ ...options, bundle, onEvent })
  try {
    const { cases, maxDifference } = await verifyBundle(engine, bundle)
    onEvent({ kind: 'verified', cases, maxDifference })
    let { microBatchSize = 0 } = options
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
    // On a CPU one pass costs what its parts do: nothing to measure, and it would take seconds.
    const costs = engine.name.endsWith('/cuda')
      ? await measureCosts(engine, manifest, microBatchSize)
      : undefined
    const keepsKv = costs === undefined || paysToKeep(costs)
    if (costs !== undefined) onEvent({ kind: 'policy', ...costs, keepsKv })
    const { gpuBudgetBytes = 0 } = engine.stats().kv ?? {}
    return createRanker({
      engine,
      bundle,
      microBatchSize,
      maxKvBytes: options.maxKvBytes || Math.max(DEFAULT_KV_BYTES, gpuBudgetBytes),
      keepsKv,
    })
  } catch (error) {
    await engine.close()
    throw error
  }
}
