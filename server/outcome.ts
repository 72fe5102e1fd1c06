import type { HttpCode } from './errors.js'

/** What one HTTP request came to: filled on its way, written as its log line and its metrics. */
export type Outcome = {
  /** When its headers were read, by performance.now(). */
  readonly startMs: number
  parseMs: number
  /** Of the body, once it is read. */
  bodyBytes: number | undefined
  serializeStartMs: number | undefined
  /** Rankings asked for: 1, or those of a batch. */
  requests: number
  candidates: number
  historyTokens: number
  /** The K/V state of a single ranking; a batch has many. */
  kv: string | undefined
  code: HttpCode | undefined
  /** Name of the API key; undefined where none was asked for. */
  key: string | undefined
  /** Errors inside a batch. */
  failed: number
  isWritten: boolean
}

declare module 'fastify' {
  interface FastifyRequest {
    outcome: Outcome
  }
}

export function newOutcome(): Outcome {
  return {
    startMs: performance.now(),
    parseMs: 0,
    bodyBytes: undefined,
    serializeStartMs: undefined,
    requests: 0,
    candidates: 0,
    historyTokens: 0,
    kv: undefined,
    code: undefined,
    key: undefined,
    failed: 0,
    isWritten: false,
  }
}
