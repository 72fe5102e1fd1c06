import type { HistoryTokens } from '../tokens.js'

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

/** K/V outside the engine: per layer K (tokens, H·dqk) and V (tokens, H·dv), in the bundle's precision. */
export type KvPages = {
  readonly tokens: number
  readonly times: Float64Array
  readonly layers: readonly { readonly k: Uint8Array; readonly v: Uint8Array }[]
}

/** One user of a one-pass run; `candidates` is (m, slots). */
export type RankUser = {
  readonly history: HistoryTokens
  readonly candidates: Int32Array
  readonly queryTime: number
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
  /**
   * K/V of `history`, which continues `past` where that is given. `past` stays valid: its rows are
   * shared, never changed. `history` may be empty: the handle then views the past's first tokens.
   */
  prefill(history: HistoryTokens, past?: KvPast): Promise<KvHandle>
  /** Logits (m, tasks) of candidate rows (m, slots) against the handle's history. */
  score(handle: KvHandle, candidates: Int32Array, queryTime: number): Promise<Float32Array>
  /** Logits (m, tasks) per user, history and candidates in one pass; no K/V is kept. */
  rank(users: readonly RankUser[]): Promise<Float32Array[]>
  exportKv(handle: KvHandle): Promise<KvPages>
  importKv(pages: KvPages): Promise<KvHandle>
  release(handle: KvHandle): void
  /** False once the worker that holds it is gone. */
  isAlive(handle: KvHandle): boolean
  /** Runs these shapes on every worker, and on every later replacement before it takes jobs. */
  warmUp(shapes: WarmUp): Promise<void>
  stats(): EngineStats
  /** Lets running jobs end, then frees everything. */
  close(): Promise<void>
}

export type EngineStats = {
  readonly workers: number
  /** Jobs accepted and not yet answered. */
  readonly pendingJobs: number
  /** Workers that crashed and were replaced. */
  readonly restarts: number
}
