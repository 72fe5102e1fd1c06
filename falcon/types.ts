import type { EngineStats } from '../model/engine/engine.js'
import type { RankInput, Warning } from '../model/request.js'

export type RankOptions = {
  /** How many items to answer, best first; all of them when absent. */
  readonly topK?: number
  /** Weight of each task in the value formula; the bundle's own when absent. */
  readonly weights?: { readonly [task: string]: number }
  /** Budget for queue and compute, from the call on; what the engine still has of it then is dropped. */
  readonly deadlineMs?: number
  /** At the deadline: answer what is scored instead of DEADLINE_EXCEEDED. */
  readonly partial?: boolean
  /** Aborted when nobody waits for the answer any more: what is under way is dropped, CANCELLED. */
  readonly signal?: AbortSignal
}

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
  readonly reusedTokens: number
  readonly prefilledTokens: number
}

/** Milliseconds per stage of one request, in the order they happen. */
export type RankTimings = {
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
  readonly candidates: number
  /** Fewer than `candidates` only for a partial answer at the deadline. */
  readonly scored: number
  readonly microBatches: number
  /** b: the most candidates in one micro-batch. */
  readonly microBatchSize: number
}

export type RankerStats = {
  readonly engine: EngineStats
  readonly cache: {
    readonly entries: number
    readonly kvBytes: number
    readonly maxKvBytes: number
    readonly evictions: number
  }
}

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
  }
  /**
   * Ranks the candidates of one request.
   * @throws {RankError} INVALID_REQUEST, DEADLINE_EXCEEDED, CANCELLED, WORKER_CRASHED
   */
  rank(input: RankInput, options: RankOptions): Promise<RankResult>
  stats(): RankerStats
  close(): Promise<void>
}
