import { createAverage } from '../cache/average.js'
import type { Engine } from '../model/engine/engine.js'
import type { Manifest } from '../model/manifest.js'
import type { CandidateList } from '../model/retrieval.js'
import { type OnStep, timed } from '../model/step.js'
import { mergeBest, type Scored } from './best.js'
import type { Deadline } from './deadline.js'
import { micros } from './numbers.js'
import { planMicroBatches } from './plan.js'

/** Item rows of one run as float32, in bytes: on a CPU what stays in its caches, on a GPU what fills it. */
const CHUNK_BYTES = { cpu: 2 ** 22, cuda: 2 ** 28 }
/** The share of the newest measurement in what a search is predicted to cost. */
const NEWEST = 0.05
const RUNS = 3

export type SearchOptions = {
  readonly engine: Engine
  readonly list: CandidateList
  /** The most items in one run. */
  readonly chunkItems: number
  /** Milliseconds of a run per item, as measured; absent: nothing is predicted. */
  readonly itemMs?: number | undefined
  /** Milliseconds, monotonic. */
  readonly now: () => number
}

export type Found = {
  readonly best: readonly Scored[]
  /** Of each run, its wait for a worker included. */
  readonly chunkMs: readonly number[]
}

/** Items of one run, where nobody says. */
export function chunkItemsFor({ name }: Pick<Engine, 'name'>, { config }: Manifest): number {
  const bytes = CHUNK_BYTES[name.endsWith('/cuda') ? 'cuda' : 'cpu']
  return Math.max(1, Math.floor(bytes / (4 * config.dModel)))
}

/** Exact search of a candidate list, in runs of at most `chunkItems`: memory does not grow with the list. */
export function createSearch({ engine, list, chunkItems, itemMs, now }: SearchOptions) {
  const chunks = planMicroBatches(list.length, chunkItems)
  const average = createAverage(NEWEST)
  return {
    /**
     * The `k` best items that are not `excluded` (places, ascending); fewer only where there are no more.
     * @throws {RankError} DEADLINE_EXCEEDED, CANCELLED, WORKER_CRASHED
     */
    async run(
      user: Float32Array,
      k: number,
      excluded: Int32Array,
      deadline: Deadline,
      onStep: OnStep | undefined,
    ): Promise<Found> {
      let best: Scored[] = []
      let left = 0
      const chunkMs: number[] = []
      for (const { start: from, end } of chunks) {
        deadline.isOver(from)
        let right = left
        while ((excluded[right] ?? end) < end) right++
        const count = end - from
        const chunk = {
          ...{ from, count, k: Math.min(k, count) },
          excluded: BigInt64Array.from(excluded.subarray(left, right), (place) =>
            BigInt(place - from),
          ),
        }
        left = right
        const start = now()
        const work = () => engine.retrieve(user, chunk, deadline.signal)
        best = mergeBest(best, await timed(onStep, 'search', work, () => ({ items: count })), k)
        const tookMs = now() - start
        if (itemMs !== undefined) average.add(tookMs, count * itemMs)
        chunkMs.push(micros(tookMs))
      }
      return { best, chunkMs }
    },
    /** Milliseconds of a whole search; undefined where nothing was measured. */
    predictMs: () => itemMs && list.length * itemMs * average.ratio(),
  }
}

/** Milliseconds per item of a run of `chunkItems`, on a warm engine: the best of a few. */
export async function measureSearch(
  engine: Engine,
  manifest: Manifest,
  list: CandidateList,
  chunkItems: number,
): Promise<number> {
  const user = new Float32Array(manifest.config.dModel).fill(1 / Math.sqrt(manifest.config.dModel))
  const count = Math.min(chunkItems, list.length)
  const chunk = { from: 0, count, k: Math.min(100, count), excluded: new BigInt64Array(0) }
  let best = Number.POSITIVE_INFINITY
  for (let run = 0; run <= RUNS; run++) {
    const start = performance.now()
    await engine.retrieve(user, chunk)
    if (run > 0) best = Math.min(best, performance.now() - start)
  }
  return best / count
}
