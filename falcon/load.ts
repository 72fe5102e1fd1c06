import {
  type OpenTier2,
  openTier2,
  type Tier2Event,
  type Tier2Options,
} from '../cache/open-tier2.js'
import { createEngine, type EngineChoice } from '../model/engine/create.js'
import type { EngineEvent } from '../model/engine/engine.js'
import { openBundle } from '../model/manifest.js'
import { createRandom } from '../model/random.js'
import { checkSlack, defaultSlack, roomOf } from '../model/window.js'
import { type CalibrationPoint, calibrate, measureCosts, randomHistory } from './calibrate.js'
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
  /**
   * How many events the window of a full history moves at a time; 0 = a sixteenth of what
   * the model holds, 1 = as few as it must.
   */
  readonly windowSlack?: number
  /** Tier 2; this process alone when absent. */
  readonly redis?: Tier2Options
  readonly onEvent?: (event: LoadEvent) => void
}

/** Tier 1 when nobody says: a thousand users of the demo model, twenty of the paper's shape. */
const DEFAULT_KV_BYTES = 512 * 2 ** 20

/** What happens while a bundle gets ready, for logs. */
export type LoadEvent =
  | EngineEvent
  | Tier2Event
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
  const { config } = manifest
  const slackEvents = checkSlack(options.windowSlack || defaultSlack(roomOf(config)), config)
  const engine = await createEngine({ ...options, bundle, onEvent })
  let tier2: OpenTier2 | undefined
  try {
    const { cases, maxDifference } = await verifyBundle(engine, bundle)
    onEvent({ kind: 'verified', cases, maxDifference })
    let { microBatchSize = 0 } = options
    if (microBatchSize === 0) {
      const calibration = await calibrate(engine, manifest)
      microBatchSize = calibration.microBatchSize
      onEvent({ kind: 'calibrated', ...calibration })
    }
    const { maxTokens } = config
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
    const longest = randomHistory(manifest, maxTokens, createRandom(2))
    if (options.redis !== undefined) {
      tier2 = await openTier2(options.redis, manifest, engine, onEvent)
    }
    const speed = await tier2?.measure(longest)
    const start = performance.now()
    engine.release(await engine.prefill(longest))
    const msPerToken = (performance.now() - start) / maxTokens
    const { roundTripMs = 1, bytesPerMs = 250_000 } = speed ?? {}
    return createRanker({
      ...(tier2 !== undefined && { tier2 }),
      fetchCosts: {
        prefillMs: (tokens) => tokens * msPerToken,
        fetchMs: (bytes) => roundTripMs + bytes / bytesPerMs,
        observeFetch: () => {},
      },
      engine,
      bundle,
      microBatchSize,
      maxKvBytes: options.maxKvBytes || Math.max(DEFAULT_KV_BYTES, gpuBudgetBytes),
      keepsKv,
      slackEvents,
    })
  } catch (error) {
    await tier2?.close()
    await engine.close()
    throw error
  }
}
