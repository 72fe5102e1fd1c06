import { type Costs, createCosts, type FetchSpeed } from '../cache/costs.js'
import { type KvMode, paysToKeep } from '../cache/decide.js'
import type { OpenTier2, Tier2Event } from '../cache/open-tier2.js'
import { openBundleInBackground } from '../model/check-bundle.js'
import { createEngine, type EngineChoice } from '../model/engine/create.js'
import type { EngineEvent } from '../model/engine/engine.js'
import { checkUnchanged, hasRetrieval, type Manifest, openBundle } from '../model/manifest.js'
import { createRandom } from '../model/random.js'
import { checkSlack, defaultSlack, roomOf } from '../model/window.js'
import {
  type CalibrationPoint,
  calibrate,
  type LongestCosts,
  type MeasuredCosts,
  measureCosts,
  randomHistory,
} from './calibrate.js'
import { type Measurements, shapeKey } from './measured.js'
import { createRanker } from './rank.js'
import { chunkItemsFor, measureSearch } from './search.js'
import { type SharedStores, shareStores } from './shared-stores.js'
import { openModelTier2, redisTarget, type StoreOptions } from './stores.js'
import type { Ranker } from './types.js'
import { verifyBundle } from './verify.js'

/** All but the bundle have defaults: CPU, everything else chosen by the machine. */
export type LoadOptions = StoreOptions & {
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
  /**
   * How many events the window of a full history moves at a time; 0 = a sixteenth of what
   * the model holds, 1 = as few as it must.
   */
  readonly windowSlack?: number
  /** When K/V is kept and used; `auto` when absent. */
  readonly kv?: KvMode
  /** Starts beside live traffic, which should not feel it; on the CPU, with engine `capi`. */
  readonly background?: boolean
  /** What this process measured before; what it measures now is added. */
  readonly measurements?: Measurements
  /** What belongs to the users, where several models share it; the ranker's own when absent. */
  readonly shared?: SharedStores
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
  /** What decides whether K/V is kept; measured on a GPU, on a CPU predicted from shorter runs. */
  | ({ readonly kind: 'policy'; readonly kv: KvMode; readonly keepsKv: boolean } & LongestCosts)
  /** What decides whether K/V is fetched from Redis; without `breakEvenTokens` it never pays. */
  | ({ readonly kind: 'fetchSpeed'; readonly breakEvenTokens?: number } & FetchSpeed)
  | { readonly kind: 'verified'; readonly cases: number; readonly maxDifference: number }

/**
 * Opens a bundle and makes it ready to serve: every worker loaded and warm, its test vectors
 * matched, b chosen.
 * @throws {RankError} BUNDLE_INVALID, CONFIG_INVALID, MODEL_CONTRACT, ENGINE_UNAVAILABLE
 */
export async function loadRanker(options: LoadOptions): Promise<Ranker> {
  const { onEvent = () => {} } = options
  const redis = redisTarget(options)
  const bundle = options.background
    ? await openBundleInBackground(options.bundle)
    : openBundle(options.bundle)
  const { manifest } = bundle
  const { config } = manifest
  const slackEvents = checkSlack(options.windowSlack || defaultSlack(roomOf(config)), config)
  const engine = await createEngine({ ...options, bundle, onEvent })
  const shared = options.shared ?? shareStores(redis, options, onEvent)
  let tier2: OpenTier2 | undefined
  try {
    tier2 = await openModelTier2(redis, options, manifest, engine, onEvent)
    const { cases, maxDifference } = await verifyBundle(engine, bundle)
    onEvent({ kind: 'verified', cases, maxDifference })
    const { workers, threadsPerWorker, measurements } = options
    const given = { workers, threadsPerWorker, microBatchSize: options.microBatchSize }
    const shape = shapeKey(engine, manifest, given)
    const known = measurements?.get(shape)
    let microBatchSize = options.microBatchSize || known?.microBatchSize || 0
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
    const measured = known?.costs ?? (await measureCosts(engine, manifest, microBatchSize))
    measurements?.set(shape, { microBatchSize, costs: measured })
    const { candidates } = bundle.vocabulary
    const itemMs =
      candidates !== undefined && hasRetrieval(manifest)
        ? await measureSearch(engine, manifest, candidates, chunkItemsFor(engine, manifest))
        : undefined
    // Long histories were tried, of which nothing is needed any more.
    await engine.trim?.()
    await engine.background?.end()
    // Nothing of the bundle is read any more: warming up opens graphs again, verifying the vectors.
    checkUnchanged(bundle)
    const costs = openCosts(measured, maxTokens, microBatchSize, options.kv ?? 'auto', onEvent)
    const { gpuBudgetBytes = 0 } = engine.stats().kv ?? {}
    await watchFetchSpeed(tier2, manifest, costs, onEvent)
    const ranker = createRanker({
      ...(tier2 !== undefined && { tier2 }),
      events: shared.eventsFor(slackEvents),
      openForgets: shared.openForgets,
      actions: shared.actions,
      engine,
      bundle,
      microBatchSize,
      maxKvBytes: options.maxKvBytes || Math.max(DEFAULT_KV_BYTES, gpuBudgetBytes),
      costs,
      slackEvents,
      itemMs,
    })
    if (options.shared !== undefined) return ranker
    return {
      ...ranker,
      async close() {
        await ranker.close()
        await shared.close()
      },
    }
  } catch (error) {
    if (options.shared === undefined) await shared.close()
    await tier2?.close()
    await engine.close()
    throw error
  }
}

function openCosts(
  { calibration, longest }: MeasuredCosts,
  maxTokens: number,
  microBatchSize: number,
  kv: KvMode,
  onEvent: (event: LoadEvent) => void,
): Costs {
  const costs = createCosts(calibration, { kv, maxTokens })
  const { prefillMs, scoreMs, rankMs } = longest ?? {
    prefillMs: costs.prefillMs(maxTokens, 0),
    scoreMs: costs.scoreMs(microBatchSize, maxTokens),
    rankMs: costs.rankMs(microBatchSize, maxTokens),
  }
  const keepsKv = paysToKeep({ prefillMs, scoreMs, rankMs })
  onEvent({ kind: 'policy', kv, keepsKv, prefillMs, scoreMs, rankMs })
  // On a GPU launches decide more than arithmetic: the measured answer holds for all lengths.
  return longest === undefined ? costs : createCosts(calibration, { kv, maxTokens, keepsKv })
}

/**
 * Measures what fetching costs, whenever Redis is there anew: until then nothing is fetched or
 * written. Waits for the first time where Redis answers at once.
 */
async function watchFetchSpeed(
  tier2: OpenTier2 | undefined,
  manifest: Manifest,
  costs: Costs,
  onEvent: (event: LoadEvent) => void,
): Promise<void> {
  if (tier2 === undefined || costs.policy.kv === 'never') return
  const longest = randomHistory(manifest, manifest.config.maxTokens, createRandom(2))
  await tier2.watchSpeed(longest, (speed) => {
    costs.setFetch(speed)
    const breakEvenTokens = costs.breakEvenTokens()
    onEvent({
      kind: 'fetchSpeed',
      ...speed,
      ...(breakEvenTokens !== undefined && { breakEvenTokens }),
    })
  })
}
