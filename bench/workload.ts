import { createRanker } from '../falcon/rank.js'
import { createReference } from '../falcon/reference.js'
import type { Ranker } from '../falcon/types.js'
import type { HstuConfig } from '../model/config.js'
import { createEngine } from '../model/engine/create.js'
import { writeBundle } from '../model/export/bundle.js'
import { PAPER_SHAPE, randomConfig, randomWeights } from '../model/export/random.js'
import { type Bundle, openBundle } from '../model/manifest.js'
import { createRandom } from '../model/random.js'
import type { HistoryEvent, RankInput } from '../model/request.js'

export const SEED = 7
const START_SECONDS = 1_700_000_000
const HOUR_SECONDS = 3600
/** When random tokens are ranked, in seconds: later than the last of the longest history. */
export const QUERY_TIME = 1_800_000_000

/** What the benches of a few replicas and of faults rank with: every answer is computed twice. */
const SMALL_SHAPE = { layers: 4, dModel: 128, heads: 4, maxTokens: 1024, items: 10_001 }

export function exportSmallShape(folder: string): Bundle {
  return exportRandom(randomConfig(SMALL_SHAPE), folder)
}

/** Exports the paper's ranking shape with random weights into `folder`. */
export function exportPaperShape(folder: string): Bundle {
  return exportRandom(randomConfig(PAPER_SHAPE), folder)
}

export function exportRandom(config: HstuConfig, folder: string): Bundle {
  const source = randomWeights(config, SEED)
  writeBundle({
    config,
    source,
    folder: '.',
    out: folder,
    precision: 'fp32',
    createOracle: (weights) => createReference(weights, config),
  })
  return openBundle(folder)
}

/** A ranker over one worker with all `threads`: the latency of one request, not throughput. */
export async function createLatencyRanker(
  bundle: Bundle,
  threads: number,
  microBatchSize: number,
): Promise<Ranker> {
  const engine = await createEngine({ bundle, workers: 1, threadsPerWorker: threads })
  return createRanker({ engine, bundle, microBatchSize, maxKvBytes: 2 ** 30 })
}

/** A seeded request of the random bundle: `events` an hour apart, `m` candidates. */
export function randomRequest(user: string, events: number, m: number, seed = SEED): RankInput {
  const random = createRandom(seed)
  const item = () => String(1 + Math.floor(random() * (PAPER_SHAPE.items - 1)))
  const history = Array.from(
    { length: events },
    (_, i): HistoryEvent => ({
      item: item(),
      time: START_SECONDS + i * HOUR_SECONDS,
      actions: random() < 0.4 ? ['click'] : [],
    }),
  )
  return {
    user: { id: user },
    histories: [history],
    series: {},
    candidates: Array.from({ length: m }, () => ({ item: item() })),
    time: START_SECONDS + events * HOUR_SECONDS,
  }
}

/** The body of POST /v1/rank for a random request. */
export function rankBody({ histories, series: _, candidates, ...rest }: RankInput): string {
  return JSON.stringify({
    ...rest,
    history: histories[0],
    candidates: candidates.map(({ item }) => item),
    topK: 100,
  })
}
