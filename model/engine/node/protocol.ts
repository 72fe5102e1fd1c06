import type { WireError } from '../../errors.js'
import type { Manifest } from '../../manifest.js'
import type { HistoryTokens } from '../../tokens.js'
import type { EncodedKv, KvPages, RankUser, RetrieveChunk, Retrieved, WarmUp } from '../engine.js'

/** What a worker is started with. */
export type WorkerOptions = {
  readonly folder: string
  readonly manifest: Manifest
  readonly provider: 'cpu' | 'cuda'
  readonly deviceId: number
  /** Use the CPU when the CUDA provider is missing, instead of failing. */
  readonly cudaFallback: boolean
  readonly threads: number
  /** Threads of this worker wait busily for each other between operators. */
  readonly spin: boolean
}

/** Handles are numbered by the pool; a worker keeps what they stand for. */
export type Job =
  | {
      readonly kind: 'prefill'
      readonly handle: number
      readonly history: HistoryTokens
      readonly past?: { readonly handle: number; readonly tokens: number }
    }
  | {
      readonly kind: 'score'
      readonly handle: number
      readonly candidates: Int32Array
      readonly queryTime: number
    }
  | { readonly kind: 'rank'; readonly users: readonly RankUser[] }
  | {
      readonly kind: 'encode'
      readonly handle: number
      readonly row: Int32Array
      readonly queryTime: number
    }
  | { readonly kind: 'retrieve'; readonly user: Float32Array; readonly chunk: RetrieveChunk }
  | { readonly kind: 'export'; readonly handle: number; readonly start: number }
  | { readonly kind: 'import'; readonly handle: number; readonly kv: EncodedKv }
  | { readonly kind: 'warmUp'; readonly shapes: WarmUp }

/** Answers by job kind. */
export type Answer = {
  readonly prefill: { readonly bytes: number }
  readonly score: { readonly logits: Float32Array }
  readonly rank: { readonly logits: Float32Array[] }
  readonly encode: { readonly user: Float32Array }
  readonly retrieve: { readonly best: Retrieved }
  readonly export: { readonly pages: KvPages }
  readonly import: { readonly bytes: number }
  readonly warmUp: null
}

export type ToWorker =
  | { readonly kind: 'job'; readonly id: number; readonly job: Job }
  /** Drops a job that still waits; one that runs goes on. */
  | { readonly kind: 'cancel'; readonly id: number }
  | { readonly kind: 'release'; readonly handle: number }
  | { readonly kind: 'close' }

export type FromWorker =
  | { readonly kind: 'ready'; readonly provider: 'cpu' | 'cuda'; readonly warning?: string }
  | { readonly kind: 'failed'; readonly error: WireError }
  | { readonly kind: 'done'; readonly id: number; readonly answer: Answer[Job['kind']] }
  | { readonly kind: 'error'; readonly id: number; readonly error: WireError }
