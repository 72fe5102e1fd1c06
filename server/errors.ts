import { STATUS_CODES } from 'node:http'
import type { Socket } from 'node:net'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { show } from '../model/check.js'
import { type ErrorCode, RankError } from '../model/errors.js'

/** What only HTTP can get wrong, beside the codes of the layers below. */
export type HttpCode = ErrorCode | 'NOT_FOUND' | 'METHOD_NOT_ALLOWED' | 'UNSUPPORTED_MEDIA_TYPE'

/** A new code without a line here does not compile. */
export const STATUS = {
  INVALID_REQUEST: 400,
  LIMIT_EXCEEDED: 422,
  MODEL_NOT_FOUND: 404,
  CONFLICT: 409,
  NOT_READY: 503,
  OVERLOADED: 429,
  DEADLINE_EXCEEDED: 504,
  CANCELLED: 499, // nobody is left to read it: for the log and the metrics, as nginx has it
  CONFIG_INVALID: 500,
  WEIGHTS_INVALID: 500,
  BUNDLE_INVALID: 500,
  MODEL_CONTRACT: 500,
  ENGINE_UNAVAILABLE: 500,
  WORKER_CRASHED: 503,
  KV_CORRUPT: 500,
  STORE_UNAVAILABLE: 503,
  UNAUTHENTICATED: 401,
  FORBIDDEN: 403,
  RATE_LIMITED: 429,
  INTERNAL: 500,
  NOT_FOUND: 404,
  METHOD_NOT_ALLOWED: 405,
  UNSUPPORTED_MEDIA_TYPE: 415,
} as const satisfies Record<HttpCode, number>

/** The body of every reply that is no answer. */
export type Problem = {
  readonly code: HttpCode
  readonly message: string
  readonly path?: string
  readonly retryAfterMs?: number
}

const MAX_PATH_CHARS = 512 // a path holds the client's own key names, which may be long
const RETRY_AFTER_SEC = 1

/** What a client may know of an error; an unforeseen one says no more than "internal error". */
export function problemOf(error: unknown): Problem {
  if (!(error instanceof RankError) || error.code === 'INTERNAL') {
    return { code: 'INTERNAL', message: 'internal error' }
  }
  const { code, message, path, retryAfterMs } = error
  return {
    ...{ code, message },
    ...(path !== undefined && { path: path.slice(0, MAX_PATH_CHARS) }),
    ...(retryAfterMs !== undefined && { retryAfterMs }),
  }
}

/** True for faults of the service itself, which are logged with their stack. */
export function isFault(error: unknown): boolean {
  return !(error instanceof RankError) || STATUS[error.code] === 500
}

/** Answers `{ code, message, path? }`. */
export function errorHandler(error: unknown, request: FastifyRequest, reply: FastifyReply) {
  return reply.send(refuse(error, request, reply))
}

/**
 * Gives the reply the status and headers of a refusal, whose text is still to be sent. Only faults of the
 * service are logged, once, with their stack.
 */
export function refuse(error: unknown, request: FastifyRequest, reply: FastifyReply): Problem {
  const [status, problem] = fromFastify(error, request) ?? fromService(error)
  if (status === 500) request.log.error({ err: error }, 'request failed')
  if ((status === 429 || status === 503) && !reply.hasHeader('retry-after')) {
    reply.header('retry-after', retryAfterSec(problem.retryAfterMs))
  }
  request.outcome.code = problem.code
  reply.code(status)
  return problem
}

/** Whole seconds, as HTTP has it; the body says it in milliseconds. */
export function retryAfterSec(retryAfterMs = 1000 * RETRY_AFTER_SEC): number {
  return Math.max(1, Math.ceil(retryAfterMs / 1000))
}

/** Answers 405 with the allowed methods where the path exists, else 404. */
export function notFoundHandler(request: FastifyRequest, reply: FastifyReply) {
  const url = request.url.split('?', 1)[0] ?? ''
  const route = url
    .replace(/^\/v1\/users\/[^/]+/, '/v1/users/:id')
    .replace(/^\/v1\/admin\/models\/[^/]+/, '/v1/admin/models/:name')
    .replace(/\/versions\/[^/]+$/, '/versions/:version')
  const methods = (['GET', 'POST', 'PUT', 'DELETE'] as const).filter((method) =>
    request.server.hasRoute({ method, url: route }),
  )
  const code = methods.length === 0 ? 'NOT_FOUND' : 'METHOD_NOT_ALLOWED'
  const message =
    methods.length === 0
      ? `no route ${request.method} ${url.slice(0, 200)}; /docs lists all`
      : `${url} must be called with ${methods.join(' or ')}, got ${request.method}`
  if (methods.length > 0) reply.header('allow', methods.join(', '))
  request.outcome.code = code
  return reply.code(STATUS[code]).send({ code, message } satisfies Problem)
}

/** Answers what is no HTTP at all, in the same form as every other error. */
export function clientErrorHandler(error: Error & { code?: string }, socket: Socket): void {
  if (error.code === 'ECONNRESET' || socket.destroyed) return
  const [status, message] =
    error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
      ? [408, 'the request took too long to arrive']
      : error.code === 'HPE_HEADER_OVERFLOW'
        ? [431, 'the headers are too large']
        : [400, 'malformed HTTP']
  const body = JSON.stringify({ code: 'INVALID_REQUEST', message } satisfies Problem)
  if (socket.writable) {
    socket.write(
      `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\nconnection: close\r\n` +
        `content-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    )
  }
  socket.destroy(error)
}

function fromService(error: unknown): [number, Problem] {
  const problem = problemOf(error)
  return [STATUS[problem.code], problem]
}

/** Fastify's own errors carry a status; those of the client keep it. */
function fromFastify(error: unknown, request: FastifyRequest): [number, Problem] | undefined {
  if (error instanceof RankError || !(error instanceof Error) || !('statusCode' in error)) return
  const { statusCode, message } = error
  if (typeof statusCode !== 'number' || statusCode < 400 || statusCode >= 500) return
  switch (statusCode) {
    case 413: {
      const got = request.headers['content-length'] ?? 'more'
      const limit = request.routeOptions.bodyLimit
      const problem = `body must be at most ${limit} bytes, got ${got}`
      return [413, { code: 'LIMIT_EXCEEDED', message: problem }]
    }
    case 415: {
      const encoding = request.headers['content-encoding']
      if (encoding !== undefined) {
        const problem = `content-encoding must be gzip, deflate or br, got ${show(encoding)}`
        return [415, { code: 'UNSUPPORTED_MEDIA_TYPE', message: problem }]
      }
      const got = show(request.headers['content-type'])
      const problem = `content-type must be application/json or application/msgpack, got ${got}`
      return [415, { code: 'UNSUPPORTED_MEDIA_TYPE', message: problem }]
    }
  }
  return [statusCode, { code: 'INVALID_REQUEST', message: message.slice(0, 200) }]
}
