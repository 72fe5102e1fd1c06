import type { CostStats } from '../cache/costs.js'
import type { KvDecision } from '../cache/decide.js'
import type { Appended, EventStoreStats } from '../cache/events.js'
import type { OpenTier2Stats as Tier2Stats } from '../cache/open-tier2.js'
import type { Engine, EngineStats } from '../model/engine/engine.js'
import type {
  HistoryEvent,
  HistoryInput,
  RankInput,
  RetrieveInput,
  Warning,
} from '../model/request.js'
import type { OnStep } from '../model/step.js'
import type { UnknownItems } from '../model/unknown-items.js'

export type RankOptions = {
  /** How many items to answer, best first; all of them when absent. */
  readonly topK?: number
  /** Weight of each task in the value formula; the bundle's own when absent. */
  readonly weights?: { readonly [task: string]: number }
  /** Budget for queue and compute, from `waitedMs` before the call on; what the engine still has of it then is dropped. */
  readonly deadlineMs?: number
  /** How much of the budget is spent already: what the request waited before the call. */
  readonly waitedMs?: number
  /** At the deadline: answer what is scored instead of DEADLINE_EXCEEDED. */
  readonly partial?: boolean
  /** Aborted when nobody waits for the answer any more: what is under way is dropped, CANCELLED. */
  readonly signal?: AbortSignal
  /** Read the user's stored history: the first source, in place of the input's `stored`. */
  readonly useStored?: boolean
  /** For a trace; nothing is measured for it when absent. */
  readonly onStep?: OnStep
}

export type PrefetchOptions = Pick<RankOptions, 'signal' | 'useStored' | 'onStep'>

export type RankedItem = {
  readonly item: string
  /** Place in the request's candidate list; also the tie order. */
  readonly index: number
  /** Value formula: sum over tasks of weight x prediction. */
  readonly score: number
  /** Per task: a probability (binary) or the logit itself (regression). */
  readonly tasks: { readonly [task: string]: number }
  readonly logits: readonly number[]
}

/** Where the history's K/V came from; `none`: ranked in one pass, nothing kept. */
export type KvUse = {
  readonly state: 'hit' | 'stale' | 'miss' | 'none'
  /** Where the reused tokens were: 1 = in this process, 2 = in Redis. */
  readonly tier?: 1 | 2
  readonly reusedTokens: number
  readonly prefilledTokens: number
  /** Absent where the deadline came first. */
  readonly decision?: KvDecision
  /** Of K/V and scores together, beside what `predictedMs` said; absent where nothing predicts. */
  readonly measuredMs?: number
  readonly predictedMs?: number
}

export type PrefetchResult = {
  /** Under way; rejects with CANCELLED or WORKER_CRASHED, so it must be waited for. */
  readonly kv: Promise<KvUse>
  readonly warnings: readonly Warning[]
}

/** Tokens of a user's K/V, by tier. */
export type KvTokens = {
  readonly memory: number
  /** Absent without Redis, and where it does not say. */
  readonly redis?: number
}

/** Milliseconds per stage of one request, in the order they happen. */
export type RankTimings = {
  /** Reading the stored history, and all histories to tokens. */
  readonly sequenceMs: number
  /** Cache lookup, prefill or append, and the wait for a worker. */
  readonly historyMs: number
  readonly scoreMs: number
  readonly headsMs: number
  readonly totalMs: number
}

export type RankResult = {
  readonly items: readonly RankedItem[]
  readonly kv: KvUse
  readonly timings: RankTimings
  readonly warnings: readonly Warning[]
  readonly historyTokens: number
  readonly truncatedEvents: number
  /** Of the events that were kept, and of the candidates. */
  readonly unknownItems: { readonly history: UnknownItems; readonly candidates: UnknownItems }
  readonly candidates: number
  /** Fewer than `candidates` only for a partial answer at the deadline. */
  readonly scored: number
  readonly microBatches: number
  /** Of each micro-batch, its wait for a worker included. */
  readonly microBatchMs: readonly number[]
  /** b: the most candidates in one micro-batch. */
  readonly microBatchSize: number
}

export type RetrieveOptions = Omit<RankOptions, 'topK' | 'weights' | 'partial'> & {
  /** How many items to answer, best first. */
  readonly topK: number
}

export type RetrieveTimings = Pick<RankTimings, 'sequenceMs' | 'historyMs' | 'totalMs'> & {
  /** The user at the end of the history. */
  readonly encodeMs: number
  readonly searchMs: number
}

export type RetrieveResult = Pick<
  RankResult,
  'kv' | 'warnings' | 'historyTokens' | 'truncatedEvents'
> & {
  /** Best first; fewer than asked for only where the list has no more. `score`: cosine, -1 to 1. */
  readonly items: readonly {
    readonly item: string
    readonly score: number
    /** Place in the candidate list; also the tie order. */
    readonly index: number
  }[]
  readonly timings: RetrieveTimings
  /** Of the events that were kept, and of `exclude`. */
  readonly unknownItems: { readonly history: UnknownItems; readonly exclude: UnknownItems }
  /** Items of the candidate list, and how many of them were left out. */
  readonly listed: number
  readonly excluded: number
  /** Of each run over a part of the list, its wait for a worker included. */
  readonly chunkMs: readonly number[]
  /** The most items in one run. */
  readonly chunkItems: number
}

export type RankerStats = {
  readonly engine: EngineStats
  readonly cache: {
    readonly entries: number
    readonly kvBytes: number
    readonly maxKvBytes: number
    readonly evictions: number
  }
  /** Absent where nothing was measured to predict from. */
  readonly costs?: CostStats
  /** Absent without Redis. */
  readonly tier2?: Tier2Stats
  readonly events: EventStoreStats
  /** Forgets and gaps that came from other replicas and from this one; absent without Redis. */
  readonly forgets?: { readonly received: number; readonly gaps: number }
}

export type { OpenTier2Stats as Tier2Stats } from '../cache/open-tier2.js'

/** A loaded, warmed-up bundle: everything the HTTP layer needs of the layers below. */
export type Ranker = {
  readonly model: {
    readonly name: string
    /** Content hash of the bundle. */
    readonly version: string
    readonly tasks: readonly { readonly name: string; readonly type: 'binary' | 'regression' }[]
    /** Action types that events may name. */
    readonly actions: readonly string[]
    /** Value formula where a request gives none; a task not named counts 0. Absent: 1 each. */
    readonly weights?: { readonly [task: string]: number }
    /** Some item ids that the model knows, to try it with. */
    readonly exampleItems: readonly string[]
    readonly maxTokens: number
    readonly precision: 'fp32' | 'fp16'
    readonly engine: string
    readonly microBatchSize: number
    /** How many events the window of a full history moves at a time; 0: as few as it must. */
    readonly slackEvents: number
    /** Absent without a retrieval head. */
    readonly retrieval?: { readonly items: number; readonly chunkItems: number }
  }
  /**
   * Ranks the candidates of one request.
   * @throws {RankError} INVALID_REQUEST, DEADLINE_EXCEEDED, CANCELLED, WORKER_CRASHED
   */
  rank(input: RankInput, options: RankOptions): Promise<RankResult>
  /**
   * The items of the bundle's candidate list that the user should meet next.
   * @throws {RankError} INVALID_REQUEST, also of a bundle without a retrieval head; DEADLINE_EXCEEDED,
   * CANCELLED, WORKER_CRASHED
   */
  retrieve(input: RetrieveInput, options: RetrieveOptions): Promise<RetrieveResult>
  /** What a retrieval should cost, as `predictMs`. */
  predictRetrieveMs(
    input: HistoryInput,
    options: Pick<RankOptions, 'useStored'>,
  ): number | undefined
  /**
   * What a ranking should cost, in milliseconds of one run at a time: from lengths and the user's K/V,
   * without any work. Undefined where nothing was measured to predict from.
   */
  predictMs(input: RankInput, options: Pick<RankOptions, 'useStored'>): number | undefined
  /** The same of a prefetch. */
  predictPrefetchMs(
    input: HistoryInput,
    options: Pick<RankOptions, 'useStored'>,
  ): number | undefined
  /** How many requests under way keep the engine busy, and how many of them it runs at a time. */
  depth(): { readonly runs: number; readonly requests: number }
  /**
   * Makes the K/V of a history and keeps it. From when this resolves, a ranking of the same history finds
   * the K/V or waits for it.
   * @throws {RankError} INVALID_REQUEST, CANCELLED
   */
  prefetch(input: HistoryInput, options: PrefetchOptions): Promise<PrefetchResult>
  /**
   * Adds to the stored history; all or nothing, and nothing twice.
   * @throws {RankError} INVALID_REQUEST at `/events/…` for an action that the model does not have, or at
   * `/idempotencyKey`; STORE_UNAVAILABLE
   */
  appendEvents(
    userId: string,
    events: readonly HistoryEvent[],
    idempotencyKey?: string,
  ): Promise<Appended>
  /** The stored history, oldest first. @throws {RankError} STORE_UNAVAILABLE */
  eventsOf(userId: string): Promise<readonly HistoryEvent[]>
  kvOf(userId: string): Promise<KvTokens>
  /**
   * Forgets the stored history and the K/V, here and on every other replica.
   * @throws {RankError} STORE_UNAVAILABLE: some of it may be forgotten already; again forgets the rest
   */
  forget(userId: string): Promise<void>
  stats(): RankerStats
  /** See `Engine.gpuMemory`. Not part of the stats: it asks the driver. */
  readonly gpuMemory?: NonNullable<Engine['gpuMemory']>
  close(): Promise<void>
}
