import type { Calibration } from '../cache/costs.js'
import type { Engine, KvHandle } from '../model/engine/engine.js'
import type { Manifest } from '../model/manifest.js'
import { createRandom } from '../model/random.js'
import { tokenScheme } from '../model/schemes.js'
import { type HistoryTokens, sliceTokens } from '../model/tokens.js'

/** Without kernels a run of m keeps (heads, m, n) scores in memory, so larger ones are not tried. */
const SIZES = [16, 32, 64, 128, 256, 512, 1024, 2048]
/** Kernels on a GPU keep none, and fill it better the more there are. */
const KERNEL_SIZES = [4096, 8192, 16_384]
const RUNS = 3
/** A longer run would keep deadlines unchecked and other requests waiting. */
const MAX_RUN_MS = 100
/** On a CPU a cost that took longer is not measured again: it would delay the start. */
const REPEAT_MS = 25
/** Candidates that tell as much as b of them on a CPU, where each costs the same. */
const CPU_CANDIDATES = 128
/** A smaller b bounds memory and checks deadlines more often: worth this much of the best speed. */
const TOLERATED_LOSS = 1.05

export type CalibrationPoint = { readonly microBatchSize: number; readonly ms: number }

/**
 * b for this bundle on this machine: the smallest size whose cost per candidate is within 5 % of
 * the best, against the longest history that the bundle allows. Runs on one worker.
 */
export async function calibrate(
  engine: Engine,
  manifest: Manifest,
): Promise<{ readonly microBatchSize: number; readonly points: readonly CalibrationPoint[] }> {
  const random = createRandom(1)
  const history = randomHistory(manifest, manifest.config.maxTokens, random)
  const handle = await engine.prefill(history)
  const points: CalibrationPoint[] = []
  const now = clockOf(engine)
  try {
    for (const microBatchSize of sizesFor(engine)) {
      const rows = randomRows(manifest, microBatchSize, random)
      let best = Number.POSITIVE_INFINITY
      for (let run = 0; run <= RUNS; run++) {
        const start = now()
        await engine.score(handle, rows, 0)
        if (run > 0) best = Math.min(best, now() - start)
      }
      if (best > MAX_RUN_MS && points.length > 0) break
      points.push({ microBatchSize, ms: best })
    }
  } finally {
    engine.release(handle)
  }
  return { microBatchSize: smallestGood(points), points }
}

/** Milliseconds of runs: beside live traffic only what they themselves took. */
function clockOf({ background }: Engine): () => number {
  return background === undefined ? () => performance.now() : background.spentMs
}

/** Micro-batch sizes worth trying, ascending. */
export function sizesFor(engine: Engine): readonly number[] {
  const hasKernels = engine.name.endsWith('/cuda') && engine.stats().kernels !== undefined
  return hasKernels ? [...SIZES, ...KERNEL_SIZES] : SIZES
}

/** Milliseconds at the longest history and b candidates. */
export type LongestCosts = {
  /** K/V of the whole history. */
  readonly prefillMs: number
  readonly scoreMs: number
  /** History and candidates in one pass. */
  readonly rankMs: number
}

export type MeasuredCosts = {
  readonly calibration: Calibration
  /** Measured on a GPU only. */
  readonly longest: LongestCosts | undefined
}

/**
 * What the ways to a request's logits cost at a few lengths, on a warm engine: the best of a few runs
 * each. On a CPU all of it takes 0.15 s for a small model and four prefills of the longest history for
 * a large one; on a GPU the longest is measured in one pass too.
 */
export async function measureCosts(
  engine: Engine,
  manifest: Manifest,
  microBatchSize: number,
): Promise<MeasuredCosts> {
  const isGpu = engine.name.endsWith('/cuda')
  const now = clockOf(engine)
  const random = createRandom(1)
  const { maxTokens: most } = manifest.config
  const history = randomHistory(manifest, most, random)
  const many = isGpu ? microBatchSize : Math.min(microBatchSize, CPU_CANDIDATES)
  const candidates = randomRows(manifest, many, random)
  const quarter = Math.ceil(most / 4)
  const few = Math.min(2, most)
  const whole = await engine.prefill(history)
  const best = async (run: () => Promise<unknown>) => {
    let ms = Number.POSITIVE_INFINITY
    let spentMs = 0
    for (let i = 0; i <= RUNS && (isGpu || spentMs < REPEAT_MS); i++) {
      const start = now()
      await run()
      const took = now() - start
      ms = Math.min(ms, took)
      spentMs += took
    }
    return ms
  }
  try {
    const prefill = async (newTokens: number, pastTokens: number) => {
      const tokens = sliceTokens(history, pastTokens, pastTokens + newTokens)
      const past = pastTokens === 0 ? undefined : { handle: whole, tokens: pastTokens }
      const ms = await best(async () => engine.release(await engine.prefill(tokens, past)))
      return { newTokens, pastTokens, ms }
    }
    const score = async (count: number, handle: KvHandle) => {
      const rows = candidates.subarray(0, (count * candidates.length) / many)
      const ms = await best(() => engine.score(handle, rows, 0))
      return { candidates: count, tokens: handle.tokens, ms }
    }
    const scoreQuarter = async () => {
      const past = { handle: whole, tokens: quarter }
      const view = await engine.prefill(sliceTokens(history, quarter, quarter), past)
      try {
        return [await score(many, view), await score(1, view)]
      } finally {
        engine.release(view)
      }
    }
    const rank = async (tokens: number) => {
      const user = { history: sliceTokens(history, 0, tokens), candidates, queryTime: 0 }
      return { candidates: many, tokens, ms: await best(() => engine.rank([user])) }
    }
    const longestPrefill = await prefill(most, 0)
    const longestScore = await score(many, whole)
    const longestRank = isGpu ? await rank(most) : undefined
    const calibration = {
      prefill: [
        longestPrefill,
        await prefill(quarter, 0),
        await prefill(few, 0),
        await prefill(few, most - few),
        await prefill(few, quarter - Math.min(few, quarter)),
        await prefill(quarter, most - quarter),
      ],
      score: [longestScore, await score(1, whole), ...(await scoreQuarter())],
      rank: [await rank(quarter), await rank(few), ...(longestRank ? [longestRank] : [])],
    }
    const longest = longestRank && {
      prefillMs: longestPrefill.ms,
      scoreMs: longestScore.ms,
      rankMs: longestRank.ms,
    }
    return { calibration, longest }
  } finally {
    engine.release(whole)
  }
}

/** Smallest size within the tolerated loss of the lowest cost per candidate. */
export function smallestGood(points: readonly CalibrationPoint[]): number {
  const cost = ({ ms, microBatchSize }: CalibrationPoint) => ms / microBatchSize
  const best = Math.min(...points.map(cost))
  return points.find((point) => cost(point) <= best * TOLERATED_LOSS)?.microBatchSize ?? 1
}

/** `length` tokens of random items and actions, an hour apart: for timing only. */
export function randomHistory(
  manifest: Manifest,
  length: number,
  random: () => number,
): HistoryTokens {
  const { actions } = manifest.config
  return {
    rows: randomRows(manifest, length, random),
    actions: Int32Array.from({ length }, () => Math.floor(random() * 2 ** (actions.length + 1))),
    times: Float64Array.from({ length }, (_, i) => 1_700_000_000 + 3600 * i),
    length,
  }
}

/** (count, slots) random numbers that tokens may have: rows of the embedding table, for the most part. */
export function randomRows(manifest: Manifest, count: number, random: () => number): Int32Array {
  const { slotRows } = tokenScheme(manifest.config)
  const { length } = slotRows
  return Int32Array.from({ length: count * length }, (_, i) =>
    Math.floor(random() * (slotRows[i % length] ?? 0)),
  )
}
