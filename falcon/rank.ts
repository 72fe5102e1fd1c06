import { createKvCache } from '../cache/kv.js'
import { createMemoryCache } from '../cache/memory.js'
import type { Engine } from '../model/engine/engine.js'
import { RankError } from '../model/errors.js'
import { predict, taskWeights, topK, valueScores } from '../model/heads.js'
import type { Bundle } from '../model/manifest.js'
import type { RankInput } from '../model/request.js'
import { buildCandidates, buildHistory, type History } from '../model/sequence.js'
import { createDeadline, type Deadline } from './deadline.js'
import { planMicroBatches } from './plan.js'
import { chooseRoute } from './policy.js'
import type { KvUse, RankedItem, Ranker, RankResult } from './types.js'

export type RankerOptions = {
  readonly engine: Engine
  readonly bundle: Bundle
  /** b: the most candidates in one micro-batch. */
  readonly microBatchSize: number
  /** Budget of tier 1, the K/V kept in the engine. */
  readonly maxKvBytes: number
  /** False where one pass is cheaper than K/V that is found again once; true when absent. */
  readonly keepsKv?: boolean
  /** Milliseconds, monotonic. */
  readonly now?: () => number
}

type Scored = {
  readonly kv: KvUse
  readonly logits: Float32Array
  readonly scored: number
  readonly microBatches: number
  readonly historyMs: number
}

const EXAMPLE_ITEMS = 100

/** What a partial answer holds when its deadline passed before anything was scored. */
const NOTHING: Scored = {
  kv: { state: 'none', reusedTokens: 0, prefilledTokens: 0 },
  logits: new Float32Array(0),
  scored: 0,
  microBatches: 0,
  historyMs: 0,
}

/**
 * The pipeline: tokens, K/V of the history, micro-batches of candidates, heads, value formula, top-k.
 * @see Zhai et al., "Actions Speak Louder than Words", section 3.4 (M-FALCON)
 */
export function createRanker(options: RankerOptions): Ranker {
  const { engine, bundle, microBatchSize, maxKvBytes, keepsKv = true } = options
  const { now = () => performance.now() } = options
  const { manifest, vocabulary } = bundle
  const { tasks, weights: bundleWeights } = manifest.config
  const { slots } = manifest.embedding
  const memory = createMemoryCache(engine, maxKvBytes)
  const kv = createKvCache(engine, memory, manifest.appendIsExact)

  /** Everything in one run: for histories whose K/V could not be reused. */
  const onePass = async (
    input: RankInput,
    history: History,
    rows: Int32Array,
    deadline: Deadline,
  ): Promise<Scored> => {
    if (deadline.isOver(0)) return NOTHING
    const user = { history: history.tokens, candidates: rows, queryTime: input.time }
    const ranked = await deadline.within(engine.rank([user], deadline.signal))
    if (ranked === undefined) return NOTHING
    const [logits = new Float32Array(0)] = ranked
    return {
      kv: { state: 'none', reusedTokens: 0, prefilledTokens: history.tokens.length },
      logits,
      scored: rows.length / slots,
      microBatches: 1,
      historyMs: 0,
    }
  }

  const cached = async (
    input: RankInput,
    history: History,
    rows: Int32Array,
    deadline: Deadline,
  ): Promise<Scored> => {
    if (deadline.isOver(0)) return NOTHING
    const { signal } = deadline
    const start = now()
    // Without events the K/V carries the query time: not worth the place of the user's entry.
    const obtained = await deadline.within(
      history.events === 0
        ? kv.prefill(history.tokens, signal)
        : kv.obtain(input.user.id, history.tokens, signal),
    )
    if (obtained === undefined) return NOTHING
    const { lease, ...use } = obtained
    try {
      const historyMs = now() - start
      const logits = new Float32Array((rows.length / slots) * tasks.length)
      const plan = planMicroBatches(rows.length / slots, microBatchSize)
      let scored = 0
      let microBatches = 0
      for (const { start: from, end } of plan) {
        if (deadline.isOver(scored)) break
        const batch = rows.subarray(from * slots, end * slots)
        const some = await deadline.within(engine.score(lease.handle, batch, input.time, signal))
        if (some === undefined) break
        logits.set(some, from * tasks.length)
        scored = end
        microBatches++
      }
      const done = logits.subarray(0, scored * tasks.length)
      return { kv: use, logits: done, scored, microBatches, historyMs }
    } finally {
      lease.done()
    }
  }

  return {
    model: {
      name: manifest.name,
      version: manifest.version,
      tasks,
      actions: manifest.config.actions,
      ...(bundleWeights !== undefined && { weights: bundleWeights }),
      exampleItems: vocabulary.knownItems().slice(0, EXAMPLE_ITEMS),
      maxTokens: manifest.config.maxTokens,
      precision: manifest.precision,
      engine: engine.name,
      microBatchSize,
    },
    async rank(input, rankOptions) {
      const start = now()
      const weights = taskWeights(tasks, bundleWeights, rankOptions.weights)
      const history = buildHistory(input, vocabulary)
      const candidates = buildCandidates(input, vocabulary)
      const sequenced = now()
      const m = input.candidates.length
      const deadline = createDeadline(rankOptions, start, now)
      const route =
        chooseRoute({ events: history.events, candidates: m, microBatchSize, keepsKv }) ===
        'onePass'
          ? onePass
          : cached
      const result = await route(input, history, candidates.rows, deadline).finally(deadline.end)
      const scoredAt = now()
      checkFinite(result.logits, manifest.precision)
      const scores = valueScores(result.logits, tasks, weights)
      const items = topK(scores, rankOptions.topK ?? m).map((index): RankedItem => {
        const predictions: { [task: string]: number } = {}
        const logits = new Array<number>(tasks.length)
        for (const [t, task] of tasks.entries()) {
          const logit = result.logits[index * tasks.length + t] ?? 0
          logits[t] = logit
          predictions[task.name] = predict(task, logit)
        }
        const item = input.candidates[index]?.item ?? ''
        return { item, index, score: scores[index] ?? 0, tasks: predictions, logits }
      })
      const end = now()
      return {
        items,
        kv: result.kv,
        timings: {
          sequenceMs: micros(sequenced - start),
          historyMs: micros(result.historyMs),
          scoreMs: micros(scoredAt - sequenced - result.historyMs),
          headsMs: micros(end - scoredAt),
          totalMs: micros(end - start),
        },
        warnings: [...history.warnings, ...candidates.warnings],
        historyTokens: history.tokens.length,
        truncatedEvents: history.truncatedEvents,
        candidates: m,
        scored: result.scored,
        microBatches: result.microBatches,
        microBatchSize,
      } satisfies RankResult
    },
    stats: () => ({ engine: engine.stats(), cache: memory.stats() }),
    async close() {
      memory.clear()
      await engine.close()
    },
  }
}

/** Milliseconds to the microsecond: what a clock can say. */
function micros(ms: number): number {
  return Math.round(ms * 1000) / 1000
}

/** A NaN would sort anywhere and read as null in JSON. */
function checkFinite(logits: Float32Array, precision: string): void {
  for (const logit of logits) {
    if (Number.isFinite(logit)) continue
    throw new RankError(
      'MODEL_CONTRACT',
      `logits must be finite, got ${logit}: the ${precision} model overflows on this request`,
    )
  }
}
