import type { Arithmetic } from '../manifest.js'
import type { HistoryTokens } from '../tokens.js'
import type { KvCodecName, KvPrecision } from './codec/graphs.js'

/**
 * K/V of a stretch of history, wherever the engine keeps it. Opaque: only the engine that made it
 * can use it. Holders release it exactly once.
 */
export type KvHandle = {
  readonly tokens: number
  /** Memory that it holds, in bytes. */
  readonly bytes: number
  readonly device: string
}

/** The first `tokens` tokens of a handle: what new tokens are appended to. */
export type KvPast = { readonly handle: KvHandle; readonly tokens: number }

/** One layer's K (tokens, H·dqk) and V (tokens, H·dv), in the engine's `kvPrecision`. */
export type KvLayer = { readonly k: Uint8Array; readonly v: Uint8Array }

/** K/V outside the engine. */
export type KvPages = {
  readonly tokens: number
  readonly times: Float64Array
  readonly layers: readonly KvLayer[]
}

/**
 * K/V as a codec wrote it. `planes`: those of K of layer 0, of V of layer 0, of K of layer 1, …; each
 * (tokens, its own width), see codec/graphs.ts. They may lie in memory that threads share.
 */
export type EncodedKv = {
  readonly tokens: number
  readonly times: Float64Array
  readonly codec: KvCodecName
  readonly planes: readonly Uint8Array[]
}

/** One user of a one-pass run; `candidates` is (m, slots). */
export type RankUser = {
  readonly history: HistoryTokens
  readonly candidates: Int32Array
  readonly queryTime: number
}

/** Places `[from, from + count)` of the candidate list. */
export type RetrieveChunk = {
  readonly from: number
  readonly count: number
  /** Items that score -infinity: places in the chunk, `[0, count)`. */
  readonly excluded: BigInt64Array
  /** Items to give, at most `count`. */
  readonly k: number
}

/** Best first; of equal scores the first place comes first. */
export type Retrieved = {
  readonly scores: Float32Array
  /** In the candidate list. */
  readonly places: BigInt64Array
}

/** Lengths whose shapes are run once on every worker before it counts as ready. */
export type WarmUp = {
  readonly historyTokens: readonly number[]
  readonly candidates: readonly number[]
}

/**
 * The one seam between the pipeline and ONNX Runtime. Every call answers in its own time and never
 * blocks the event loop.
 * @throws {RankError} WORKER_CRASHED when the worker that held the job or the handle is gone
 */
export type Engine = {
  /** For logs and metrics: engine and provider, as in `node/cpu`. */
  readonly name: string
  readonly kvPrecision: KvPrecision
  /**
   * K/V of `history`, which continues `past` where that is given. `past` stays valid: its rows are
   * shared, never changed. `history` may be empty: the handle then views the past's first tokens.
   * An aborted `signal` rejects with its reason; what is still queued is dropped, and an engine that
   * can also stops what runs. The same holds for `score` and `rank`.
   */
  prefill(history: HistoryTokens, past?: KvPast, signal?: AbortSignal): Promise<KvHandle>
  /** Logits (m, tasks) of candidate rows (m, slots) against the handle's history. */
  score(
    handle: KvHandle,
    candidates: Int32Array,
    queryTime: number,
    signal?: AbortSignal,
  ): Promise<Float32Array>
  /**
   * Logits (m, tasks) per user, history and candidates in one pass; no K/V is kept. An engine may run
   * calls for single users that wait at the same time as one.
   */
  rank(users: readonly RankUser[], signal?: AbortSignal): Promise<Float32Array[]>
  /**
   * The user at the end of the handle's history, (D) of length 1: what `retrieve` compares items with.
   * `row`: (slots), what every candidate's row begins with. For bundles with a retrieval head.
   */
  encode(
    handle: KvHandle,
    row: Int32Array,
    queryTime: number,
    signal?: AbortSignal,
  ): Promise<Float32Array>
  /** The best items of a stretch of the bundle's candidate list for a user. */
  retrieve(user: Float32Array, chunk: RetrieveChunk, signal?: AbortSignal): Promise<Retrieved>
  /** Copies of the handle's rows from token `start` on; all of them when absent. */
  exportKv(handle: KvHandle, start?: number): Promise<KvPages>
  /**
   * A handle of K/V from outside, decoded where a codec wrote it. Once it settles, well or not, nobody
   * reads what it was given.
   * @throws {RankError} KV_CORRUPT when it is not of this model's shape
   */
  importKv(kv: KvPages | EncodedKv): Promise<KvHandle>
  release(handle: KvHandle): void
  /** False once the worker that holds it is gone. */
  isAlive(handle: KvHandle): boolean
  /** Runs these shapes on every worker, and on every later replacement before it takes jobs. */
  warmUp(shapes: WarmUp): Promise<void>
  /**
   * Where the engine starts beside live traffic: until `end` its runs take place one at a time on a
   * thread of the lowest priority. `spentMs` is the processor time that they took; the time that passed
   * says more about the others.
   */
  readonly background?: { spentMs(): number; end(): Promise<void> }
  /** Gives free memory back to the system; absent where an engine cannot. */
  trim?(): Promise<void>
  stats(): EngineStats
  /** Of the GPU that it runs on, by every process; absent on a CPU, undefined when the GPU does not say. */
  gpuMemory?(): { readonly usedBytes: number; readonly totalBytes: number } | undefined
  /** Lets running jobs end, then frees everything. */
  close(): Promise<void>
}

export type EngineStats = {
  /** That can take jobs: 0 while all have crashed, and for good when the GPU is lost. */
  readonly workers: number
  /** Jobs accepted and not yet answered. */
  readonly pendingJobs: number
  /** Workers that crashed and were replaced. */
  readonly restarts: number
  /**
   * Requests under way at a time that keep it busy, and let it batch where it does: more only wait in
   * it. One more than the workers when absent, for the event loop's part of a request.
   */
  readonly depth?: number
  /** Where K/V lies; absent where an engine keeps it in one place. */
  readonly kv?: {
    readonly gpuBytes: number
    /** The most that stays on the GPU. */
    readonly gpuBudgetBytes: number
    /** Pinned memory of the host: the least recently used, behind the GPU's budget. */
    readonly hostBytes: number
    /** Blocks moved to the host and back since the start. */
    readonly spills: number
    readonly restores: number
  }
  /** Runs of one-pass ranking, and the users ranked in them; absent where nothing is batched. */
  readonly batches?: { readonly runs: number; readonly users: number }
  /** The kernel library that runs in place of the graphs' functions; absent where these run. */
  readonly kernels?: { readonly library: string; readonly arithmetic: Arithmetic }
}

/** What an engine tells whoever logs; it does not log itself. */
export type EngineEvent =
  /** It is there: engine and provider, and the runs at a time that it has. */
  | {
      readonly kind: 'engine'
      readonly name: string
      readonly workers: number
      readonly threadsPerWorker: number
    }
  | { readonly kind: 'provider'; readonly warning: string }
  /** Engine `node` runs where `capi` cannot. */
  | { readonly kind: 'engineFallback'; readonly warning: string }
  | { readonly kind: 'crash'; readonly worker: number; readonly error: string }
  | { readonly kind: 'restarted'; readonly worker: number }
  | {
      readonly kind: 'notRestarted'
      readonly worker: number
      readonly error: string
      /** Until the next try. */
      readonly pauseMs: number
    }
  /** After this error the GPU refuses every call: only a new process can use it again. */
  | { readonly kind: 'deviceLost'; readonly error: string }
  /** Custom ops of this library run in place of the graphs' functions. */
  | { readonly kind: 'kernels'; readonly library: string; readonly arithmetic: Arithmetic }
  /** A library fits this chip, and still the functions run. */
  | { readonly kind: 'kernelsRefused'; readonly library: string; readonly warning: string }
  /** The embedding table is too large for the GPU, which reads it where it lies: in its file's pages, or in a copy. */
  | { readonly kind: 'hostTable'; readonly bytes: number; readonly isCopy: boolean }
  /** CUDA graphs of so many shapes are ready, and how many users share a one-pass run at most. */
  | {
      readonly kind: 'captured'
      readonly shapes: number
      readonly batchLimit: number
      readonly ms: number
    }
  /** A handle was collected as garbage before its release: a bug of whoever held it. */
  | { readonly kind: 'leakedHandle'; readonly tokens: number }
