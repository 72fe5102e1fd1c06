/** Every way the service can fail. HTTP statuses live in server/errors.ts; this layer has no HTTP. */
export type ErrorCode =
  | 'INVALID_REQUEST'
  | 'LIMIT_EXCEEDED'
  | 'MODEL_NOT_FOUND'
  | 'CONFLICT'
  | 'NOT_READY'
  | 'OVERLOADED'
  | 'DEADLINE_EXCEEDED'
  | 'CANCELLED'
  | 'CONFIG_INVALID'
  | 'WEIGHTS_INVALID'
  | 'BUNDLE_INVALID'
  | 'MODEL_CONTRACT'
  | 'ENGINE_UNAVAILABLE'
  | 'WORKER_CRASHED'
  | 'KV_CORRUPT'
  | 'STORE_UNAVAILABLE'
  | 'UNAUTHENTICATED'
  | 'FORBIDDEN'
  | 'RATE_LIMITED'
  | 'INTERNAL'

/** Plain form of a `RankError`: survives `postMessage`, which drops `name` and `code`. */
export type WireError = {
  readonly code: ErrorCode
  readonly message: string
  readonly path?: string
}

export type RankErrorOptions = ErrorOptions & {
  /** Where in the request the fault lies, as a JSON pointer: `/history/3/actions/0`. */
  readonly path?: string
  /** When the same may work. */
  readonly retryAfterMs?: number
}

/** The one error class of this service. Branch on `code`, never on `message`. */
export class RankError extends Error {
  override readonly name = 'RankError'
  readonly code: ErrorCode
  readonly path: string | undefined
  readonly retryAfterMs: number | undefined

  constructor(code: ErrorCode, message: string, options: RankErrorOptions = {}) {
    super(message, options)
    this.code = code
    this.path = options.path
    this.retryAfterMs = options.retryAfterMs
  }
}

export function toWire(error: unknown): WireError {
  if (error instanceof RankError) {
    const { code, message, path } = error
    return path === undefined ? { code, message } : { code, message, path }
  }
  return { code: 'INTERNAL', message: error instanceof Error ? error.message : String(error) }
}

export function fromWire({ code, message, path }: WireError): RankError {
  return new RankError(code, message, path === undefined ? {} : { path })
}
