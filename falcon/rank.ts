import type { Costs } from '../cache/costs.js'
import type { KvDecision, KvQuestion } from '../cache/decide.js'
import { createKvCache, type KvState } from '../cache/kv.js'
import { createMemoryCache } from '../cache/memory.js'
import type { Engine } from '../model/engine/engine.js'
import { RankError } from '../model/errors.js'
import { predict, taskWeights, topK, valueScores } from '../model/heads.js'
import type { Bundle } from '../model/manifest.js'
import type { RankInput } from '../model/request.js'
import { buildCandidates, buildHistory, type History } from '../model/sequence.js'
import { checkSlack } from '../model/window.js'
import { createDeadline, type Deadline } from './deadline.js'
import { observeEngine } from './observe.js'
import { planMicroBatches } from './plan.js'
import type { KvUse, RankedItem, Ranker, RankResult } from './types.js'

export type RankerOptions = {
  readonly engine: Engine
  readonly bundle: Bundle
  /** b: the most candidates in one micro-batch. */
  readonly microBatchSize: number
  /** Budget of tier 1, the K/V kept in the engine. */
  readonly maxKvBytes: number
  /** What decides between the ways to the scores; absent: all K/V is kept and used. */
  readonly costs?: Costs
  /** How many events the window of a full history moves at a time; 0 when absent: as few as it must. */
  readonly slackEvents?: number
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

const DECISION_OF: Record<KvState, KvDecision> = {
  hit: 'hit',
  stale: 'append',
  miss: 'recompute',
}

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
 * @throws {RankError} CONFIG_INVALID for slack that the model's history has no room for
 * @see Zhai et al., "Actions Speak Louder than Words", section 3.4 (M-FALCON)
 */
export function createRanker(options: RankerOptions): Ranker {
  const { bundle, microBatchSize, maxKvBytes, costs, now = () => performance.now() } = options
  const { manifest, vocabulary } = bundle
  const { tasks, weights: bundleWeights } = manifest.config
  const { slots } = manifest.embedding
  const engine =
    costs === undefined ? options.engine : observeEngine(options.engine, costs, slots, now)
  const mode = costs?.policy.kv ?? 'always'
  const memory = createMemoryCache(engine, maxKvBytes)
  const kv = createKvCache(engine, memory, manifest.appendIsExact)
  const slackEvents = checkSlack(options.slackEvents ?? 0, manifest.config)

  const questionOf = (tokens: number, covered1: number, candidates: number): KvQuestion => ({
    tokens,
    covered1,
    candidates,
    microBatchSize,
  })

  /**
   * Whether the history's K/V is neither looked up nor kept. Without events it carries the query
   * time: not worth the place of the user's entry.
   */
  const isUnkept = (history: History) => history.events === 0 || mode === 'never'

  /**
   * Whether history and candidates go in one pass; they must fit one micro-batch. Whoever has K/V in
   * tier 1 goes there: what it covers is not known yet, and a hit beats everything.
   */
  const isOnePass = (userId: string, history: History, candidates: number): boolean => {
    if (candidates > microBatchSize) return false
    if (isUnkept(history)) return true
    if (costs === undefined || mode === 'always') return false
    const { decision } = costs.decide(questionOf(history.tokens.length, 0, candidates))
    if (decision !== 'onePass') return false
    const entry = costs.policy.keepsKv === false ? undefined : memory.lookup(userId)
    entry?.done()
    return entry === undefined
  }

  /** `use` with the decision that it was, and what that should cost. */
  const priced = (
    decision: KvDecision,
    use: Omit<KvUse, 'decision'>,
    tokens: number,
    candidates: number,
  ): KvUse => {
    if (costs === undefined) return { ...use, decision }
    const question = questionOf(tokens, use.reusedTokens, candidates)
    const { predictedMs } = costs.priceOf(decision, question)
    return { ...use, decision, predictedMs: micros(predictedMs) }
  }

  /** Everything in one run: for histories whose K/V could not be reused. */
  const onePass = async (
    input: RankInput,
    history: History,
    rows: Int32Array,
    deadline: Deadline,
  ): Promise<Scored> => {
    if (deadline.isOver(0)) return NOTHING
    const { tokens } = history
    const user = { history: tokens, candidates: rows, queryTime: input.time }
    const use: KvUse = { state: 'none', reusedTokens: 0, prefilledTokens: tokens.length }
    const kvUse = priced('onePass', use, tokens.length, rows.length / slots)
    const ranked = await deadline.within(engine.rank([user], deadline.signal))
    if (ranked === undefined) return NOTHING
    const [logits = new Float32Array(0)] = ranked
    return {
      kv: kvUse,
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
    const obtained = await deadline.within(
      isUnkept(history)
        ? kv.prefill(history.tokens, signal)
        : kv.obtain(input.user.id, history.tokens, signal),
    )
    if (obtained === undefined) return NOTHING
    const { lease, ...use } = obtained
    try {
      const historyMs = now() - start
      const m = rows.length / slots
      const kvUse = priced(DECISION_OF[use.state], use, history.tokens.length, m)
      const logits = new Float32Array(m * tasks.length)
      const plan = planMicroBatches(m, microBatchSize)
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
      return { kv: kvUse, logits: done, scored, microBatches, historyMs }
    } finally {
      lease.done()
    }
  }

  return {
    model: {
      name: manifest.name,
      version: manifest.version,
      tasks,
      maxTokens: manifest.config.maxTokens,
      precision: manifest.precision,
      engine: engine.name,
      microBatchSize,
      slackEvents,
    },
    async rank(input, rankOptions) {
      const start = now()
      const weights = taskWeights(tasks, bundleWeights, rankOptions.weights)
      const history = buildHistory(input, vocabulary, slackEvents)
      const candidates = buildCandidates(input, vocabulary)
      const sequenced = now()
      const m = input.candidates.length
      const deadline = createDeadline(rankOptions, start, now)
      const route = isOnePass(input.user.id, history, m) ? onePass : cached
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
        kv:
          result.kv.decision === undefined
            ? result.kv
            : { ...result.kv, measuredMs: micros(scoredAt - sequenced) },
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
    stats: () => ({
      engine: engine.stats(),
      cache: memory.stats(),
      ...(costs !== undefined && { costs: costs.stats() }),
    }),
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
