import type { Costs } from '../cache/costs.js'
import type { Epoch } from '../cache/epochs.js'
import { DEFAULT_EVENT_LIMITS, type EventStore } from '../cache/events.js'
import { createMemoryEvents } from '../cache/events-memory.js'
import { type UserHash, userHash } from '../cache/key.js'
import { createKvCache } from '../cache/kv.js'
import { createMemoryCache } from '../cache/memory.js'
import type { OpenTier2 } from '../cache/open-tier2.js'
import type { Engine } from '../model/engine/engine.js'
import { predict, taskWeights, topK, valueScores } from '../model/heads.js'
import type { Bundle } from '../model/manifest.js'
import type { RankInput } from '../model/request.js'
import { buildCandidates } from '../model/sequence.js'
import type { OnStep } from '../model/step.js'
import type { HistoryTokens } from '../model/tokens.js'
import { checkSlack } from '../model/window.js'
import { createDeadline, type Deadline } from './deadline.js'
import { checkFinite, micros } from './numbers.js'
import { observeEngine } from './observe.js'
import { createPrices } from './price.js'
import { openRetrieval } from './retrieve.js'
import { createRoutes } from './routes.js'
import { createScorer } from './score.js'
import { createSequence } from './sequence.js'
import type { SharedStores } from './shared-stores.js'
import type { KvUse, RankedItem, Ranker, RankOptions, RankResult } from './types.js'
import { createUsers } from './users.js'

export type RankerOptions = {
  readonly engine: Engine
  readonly bundle: Bundle
  /** b: the most candidates in one micro-batch. */
  readonly microBatchSize: number
  /** Budget of tier 1, the K/V kept in the engine. */
  readonly maxKvBytes: number
  /** K/V in Redis, used where `costs` are there too; the ranker closes it. */
  readonly tier2?: OpenTier2
  /** The most items of the candidate list in one run; chosen by the device when absent. */
  readonly chunkItems?: number | undefined
  /** Milliseconds of such a run per item; without, no retrieval is predicted. */
  readonly itemMs?: number | undefined
  /** What decides between the ways to the scores; absent: all K/V is kept and used. */
  readonly costs?: Costs
  /** How many events the window of a full history moves at a time; 0 when absent: as few as it must. */
  readonly slackEvents?: number
  /** Stored histories, closed with the ranker; in memory when absent. */
  readonly events?: EventStore
  /** Where there are other models or replicas: begins to listen to them. */
  readonly openForgets?: SharedStores['openForgets']
  /** The actions of all models of the process, which stored events may name. */
  readonly actions?: SharedStores['actions']
  /** Milliseconds, monotonic. */
  readonly now?: () => number
}

const EXAMPLE_ITEMS = 100

const NO_KV: KvUse = { state: 'none', reusedTokens: 0, prefilledTokens: 0 }

/**
 * The pipeline: tokens, K/V of the history, micro-batches of candidates, heads, value formula, top-k.
 * @throws {RankError} CONFIG_INVALID for slack that the model's history has no room for
 * @see Zhai et al., "Actions Speak Louder than Words", section 3.4 (M-FALCON)
 */
export function createRanker(options: RankerOptions): Ranker {
  const { bundle, microBatchSize, maxKvBytes, costs, now = () => performance.now() } = options
  const { events = createMemoryEvents(DEFAULT_EVENT_LIMITS) } = options
  const { manifest, vocabulary } = bundle
  const { tasks, weights: bundleWeights } = manifest.config
  const { slots } = manifest.embedding
  const engine =
    costs === undefined ? options.engine : observeEngine(options.engine, costs, slots, now)
  const memory = createMemoryCache(engine, maxKvBytes)
  const { appendIsExact } = manifest
  const { tier2 } = options
  const tokenBytes = tier2?.tokenBytes ?? 0
  const routes = createRoutes({ costs, memory, microBatchSize, tokenBytes })
  const kv = createKvCache({
    ...{ engine, memory, appendIsExact },
    ...(tier2 !== undefined && costs !== undefined && tier2.cacheParts(costs)),
  })
  const slackEvents = checkSlack(options.slackEvents ?? 0, manifest.config)
  const removeActions = options.actions?.add(manifest.config.actions)
  const forgets = options.openForgets?.({
    onForget(user) {
      kv.forget(user)
      // Here too: this replica may have written its K/V behind the one that was asked to forget.
      tier2?.forget(user).catch(() => {})
    },
    onGap() {
      kv.forgetAll()
      tier2?.writes.forgetAll()
    },
  })
  const users = createUsers({
    events,
    kv,
    vocabulary,
    ...(tier2 !== undefined && { tier2 }),
    ...(forgets !== undefined && { forgets }),
    ...(options.actions !== undefined && { knownActions: options.actions.all }),
  })

  const prices =
    costs &&
    createPrices({
      ...{ costs, slackEvents, microBatchSize },
      config: manifest.config,
      tokensOf: memory.tokensOf,
    })

  const score = createScorer({
    ...{ engine, kv, routes, microBatchSize, slots, now },
    tasks: tasks.length,
  })

  const sequence = createSequence({
    ...{ users, vocabulary, slackEvents, now },
    onStored: (tokens) => prices?.observeStored(tokens),
  })
  const { retrieval, retrieve } = openRetrieval({
    ...{ engine, bundle, kv, routes, sequence, now },
    ...{ chunkItems: options.chunkItems, itemMs: options.itemMs },
  })

  /** K/V for nobody yet. */
  const prefill = async (
    user: UserHash,
    tokens: HistoryTokens,
    signal: AbortSignal | undefined,
    epoch: Epoch,
    onStep: OnStep | undefined,
  ): Promise<KvUse> => {
    const { lease, ...use } = await kv.obtain(user, tokens, signal, epoch, onStep)
    lease.done()
    return use
  }

  const sequenceAndScore = async (
    input: RankInput,
    user: UserHash,
    rankOptions: RankOptions,
    deadline: Deadline,
    epoch: Epoch,
  ) => {
    const { onStep } = rankOptions
    const { history, startMs } = await sequence(input, user, rankOptions, deadline)
    const candidates = buildCandidates(input, vocabulary, history)
    const sequenced = now()
    onStep?.('sequence', startMs, sequenced, { tokens: history.tokens.length })
    const result = await score({
      ...{ user, history, rows: candidates.rows, queryTime: input.time, deadline, epoch, onStep },
    })
    return { history, candidates, sequenced, result }
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
      slackEvents,
      ...(retrieval !== undefined && { retrieval: retrieval.model }),
    },
    async rank(input, rankOptions) {
      const start = now()
      const weights = taskWeights(tasks, bundleWeights, rankOptions.weights)
      const m = input.candidates.length
      const deadline = createDeadline(rankOptions, start - (rankOptions.waitedMs ?? 0), now)
      const user = userHash(input.user.id)
      const epoch = kv.begin(user)
      const { history, candidates, sequenced, result } = await sequenceAndScore(
        input,
        user,
        rankOptions,
        deadline,
        epoch,
      ).finally(() => {
        epoch.end()
        deadline.end()
      })
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
      rankOptions.onStep?.('heads', scoredAt, end, { items: items.length })
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
        unknownItems: { history: history.unknownItems, candidates: candidates.unknownItems },
        candidates: m,
        scored: result.scored,
        microBatches: result.microBatchMs.length,
        microBatchMs: result.microBatchMs,
        microBatchSize,
      } satisfies RankResult
    },
    async prefetch(input, prefetchOptions) {
      const { signal, onStep } = prefetchOptions
      const user = userHash(input.user.id)
      const epoch = kv.begin(user)
      try {
        const unbounded = { signal, within: <T>(work: Promise<T>) => work }
        const { history } = await sequence(input, user, prefetchOptions, unbounded)
        const made = routes.isWorthMaking(history)
          ? prefill(user, history.tokens, signal, epoch, onStep)
          : Promise.resolve(NO_KV)
        return { kv: made.finally(epoch.end), warnings: history.warnings }
      } catch (error) {
        epoch.end()
        throw error
      }
    },
    retrieve,
    predictRetrieveMs(input, { useStored = false }) {
      const searchMs = retrieval?.predictMs()
      if (prices === undefined || searchMs === undefined) return undefined
      return prices.ofEncoding(input, userHash(input.user.id), useStored) + searchMs
    },
    predictMs(input, { useStored = false }) {
      return prices?.ofRanking(input, userHash(input.user.id), input.candidates.length, useStored)
    },
    predictPrefetchMs(input, { useStored = false }) {
      return prices?.ofPrefetch(input, userHash(input.user.id), useStored)
    },
    depth() {
      const { workers, depth = workers + 1 } = engine.stats()
      return { runs: workers, requests: depth }
    },
    appendEvents: users.appendEvents,
    eventsOf: users.eventsOf,
    kvOf: users.kvOf,
    forget: users.forget,
    stats: () => ({
      engine: engine.stats(),
      cache: memory.stats(),
      ...(costs !== undefined && { costs: costs.stats() }),
      ...(tier2 !== undefined && { tier2: tier2.stats() }),
      events: events.stats(),
      ...(forgets !== undefined && { forgets: forgets.stats() }),
    }),
    ...(engine.gpuMemory !== undefined && { gpuMemory: engine.gpuMemory }),
    async close() {
      removeActions?.()
      await forgets?.close()
      users.stop()
      events.close()
      await tier2?.close()
      memory.clear()
      await engine.close()
    },
  }
}
