import type { Engine } from '../model/engine/engine.js'
import type { Manifest } from '../model/manifest.js'
import { createRandom } from '../model/random.js'
import type { HistoryTokens } from '../model/tokens.js'
import type { Costs } from './policy.js'

const SIZES = [16, 32, 64, 128, 256, 512, 1024, 2048]
const RUNS = 3
/** A longer run would keep deadlines unchecked and other requests waiting. */
const MAX_RUN_MS = 100
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
  try {
    for (const microBatchSize of SIZES) {
      const rows = randomRows(manifest, microBatchSize, random)
      let best = Number.POSITIVE_INFINITY
      for (let run = 0; run <= RUNS; run++) {
        const start = performance.now()
        await engine.score(handle, rows, 0)
        if (run > 0) best = Math.min(best, performance.now() - start)
      }
      if (best > MAX_RUN_MS && points.length > 0) break
      points.push({ microBatchSize, ms: best })
    }
  } finally {
    engine.release(handle)
  }
  return { microBatchSize: smallestGood(points), points }
}

/** What the ways to a request's logits cost: the best of a few runs each, on a warm engine. */
export async function measureCosts(
  engine: Engine,
  manifest: Manifest,
  microBatchSize: number,
): Promise<Costs> {
  const random = createRandom(1)
  const history = randomHistory(manifest, manifest.config.maxTokens, random)
  const candidates = randomRows(manifest, microBatchSize, random)
  const best = async (run: () => Promise<unknown>) => {
    let ms = Number.POSITIVE_INFINITY
    for (let i = 0; i <= RUNS; i++) {
      const start = performance.now()
      await run()
      ms = Math.min(ms, performance.now() - start)
    }
    return ms
  }
  const handle = await engine.prefill(history)
  try {
    return {
      prefillMs: await best(async () => engine.release(await engine.prefill(history))),
      scoreMs: await best(() => engine.score(handle, candidates, 0)),
      rankMs: await best(() => engine.rank([{ history, candidates, queryTime: 0 }])),
    }
  } finally {
    engine.release(handle)
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

/** (count, slots) random rows of the embedding table. */
export function randomRows(manifest: Manifest, count: number, random: () => number): Int32Array {
  const { rows, slots } = manifest.embedding
  return Int32Array.from({ length: count * slots }, () => Math.floor(random() * rows))
}
