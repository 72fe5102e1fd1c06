import type {
  EventsAnswer,
  EventsRequest,
  ModelList,
  PrefetchAnswer,
  PrefetchRequest,
  Problem,
  RankAnswer,
  RankRequest,
  RetrieveAnswer,
  RetrieveRequest,
  UserAnswer,
} from './types.js'

/** A client of Peregrine's HTTP API over `fetch`, which keeps connections alive: make one and share it. */
export type Client = ReturnType<typeof createClient>

export type ClientOptions = {
  /** Such as `http://127.0.0.1:8080`. */
  readonly url: string
  readonly apiKey?: string
  /** For requests that bring no signal of their own; none when absent. */
  readonly timeoutMs?: number
  /** The platform's own when absent. */
  readonly fetch?: typeof fetch
}

export type CallOptions = {
  readonly signal?: AbortSignal
  /** More headers, such as `traceparent`. */
  readonly headers?: Readonly<Record<string, string>>
}

/** What the server refused; branch on `code`. */
export class PeregrineError extends Error {
  readonly code: string
  readonly status: number
  /** JSON pointer to the fault. */
  readonly path: string | undefined
  /** When to try again, where the server says so: 429 and 503. */
  readonly retryAfterSec: number | undefined

  constructor(problem: Problem, status: number, retryAfter: string | null) {
    super(
      `${problem.code}: ${problem.path === undefined ? '' : `${problem.path} `}${problem.message}`,
    )
    this.code = problem.code
    this.status = status
    this.path = problem.path
    this.retryAfterSec = retryAfter === null ? undefined : Number(retryAfter)
  }
}

/** Every method throws PeregrineError for what the server refuses, and what `fetch` throws. */
export function createClient({ url, apiKey, timeoutMs, fetch: send = fetch }: ClientOptions) {
  const base = url.replace(/\/+$/, '')

  const call = async <T>(
    method: 'GET' | 'POST' | 'DELETE',
    path: string,
    body: unknown,
    { signal, headers = {} }: CallOptions = {},
  ): Promise<T> => {
    const limit = timeoutMs === undefined ? undefined : AbortSignal.timeout(timeoutMs)
    const response = await send(`${base}${path}`, {
      method,
      headers: {
        ...(body !== undefined && { 'content-type': 'application/json' }),
        ...(apiKey !== undefined && { authorization: `Bearer ${apiKey}` }),
        ...headers,
      },
      ...(body !== undefined && { body: JSON.stringify(body) }),
      ...((signal ?? limit) && { signal: signal ?? limit ?? null }),
    })
    const text = await response.text()
    if (response.ok) return text === '' ? (undefined as T) : JSON.parse(text)
    throw new PeregrineError(problemIn(text), response.status, response.headers.get('retry-after'))
  }
  const user = (id: string) => `/v1/users/${encodeURIComponent(id)}`

  return {
    rank: (request: RankRequest, options?: CallOptions) =>
      call<RankAnswer>('POST', '/v1/rank', request, options),
    retrieve: (request: RetrieveRequest, options?: CallOptions) =>
      call<RetrieveAnswer>('POST', '/v1/retrieve', request, options),
    /** In the order of the requests; one that failed is an `error` in its place. */
    rankBatch: (requests: readonly RankRequest[], options?: CallOptions) =>
      call<{ readonly results: readonly (RankAnswer | { readonly error: Problem })[] }>(
        'POST',
        '/v1/rank/batch',
        { requests },
        options,
      ),
    prefetch: (request: PrefetchRequest, options?: CallOptions) =>
      call<PrefetchAnswer>('POST', '/v1/prefetch', request, options),
    appendEvents: (userId: string, request: EventsRequest, options?: CallOptions) =>
      call<EventsAnswer>('POST', `${user(userId)}/events`, request, options),
    user: (userId: string, options?: CallOptions) =>
      call<UserAnswer>('GET', user(userId), undefined, options),
    forget: (userId: string, options?: CallOptions) =>
      call<void>('DELETE', user(userId), undefined, options),
    models: (options?: CallOptions) => call<ModelList>('GET', '/v1/models', undefined, options),
  }
}

/** A proxy in between may answer anything. */
function problemIn(text: string): Problem {
  try {
    const { code, message, path } = JSON.parse(text)
    if (typeof code === 'string' && typeof message === 'string') return { code, message, path }
  } catch {}
  return { code: 'UNREADABLE', message: `no answer of Peregrine's: ${text.slice(0, 200)}` }
}
