import type { IncomingMessage, ServerResponse } from 'node:http'
import type { FastifyBaseLogger } from 'fastify'
import { RankError } from '../model/errors.js'
import type { Admission, Job } from './admission.js'
import type { ApiKey, Auth } from './auth.js'
import { jobOfHeaders } from './door.js'
import { type HttpCode, type Problem, retryAfterSec } from './errors.js'
import type { Priority } from './fair-queue.js'
import { requestId } from './log.js'
import type { Metrics } from './metrics.js'

export type GateOptions = {
  /** Exact paths that are POSTed to, and the priority of those whose callers do not choose it. */
  readonly routes: ReadonlyMap<string, Priority | undefined>
  /** False while requests are to go all the way, to be told that nothing is ready or all is closing. */
  readonly isOpen: () => boolean
  readonly auth: Pick<Auth, 'rankingKeyOf' | 'remember' | 'waitSec' | 'rateLimited'>
  readonly admission: Pick<Admission, 'refusal' | 'counted'>
  readonly metrics: Pick<Metrics, 'error' | 'request'>
  /** Of every answer. */
  readonly headers: readonly (readonly [name: string, value: string])[]
  /** Whether pages of other origins may call, who need more headers. */
  readonly hasCors: boolean
  /** Whether requests are traced, if their callers' traces are sampled. */
  readonly isTracing: boolean
  readonly log: FastifyBaseLogger
}

export type Gate = {
  /** Answers 429 to what has to be refused whatever is in its body: true where it did. */
  refuses(request: IncomingMessage, response: ServerResponse): boolean
  /** It came through here. */
  hasPassed(request: IncomingMessage): boolean
  /** Logs what was refused since the last line. */
  close(): void
}

const STATUS = 429
/** Under overload a line for each refusal would be most of the work. */
const LOG_EVERY_MS = 1000

/**
 * Stands before Fastify, where a refusal costs a fraction: no router, no hooks, no error. It refuses
 * what the door would, in the same words, and lets pass whatever is not plainly that: the long way
 * tells who has no key, or a bad header.
 */
export function createGate(options: GateOptions): Gate {
  const { routes, isOpen, auth, admission, metrics, headers, hasCors, isTracing, log } = options
  const fixed = [...headers.flat(), 'content-type', 'application/json; charset=utf-8']
  const passed = new WeakSet<IncomingMessage>()
  const tally = createTally(log)

  const refuse = (
    request: IncomingMessage,
    response: ServerResponse,
    job: Job,
    problem: Problem,
    retryAfterMs: number,
  ): true => {
    const route = request.url ?? ''
    const { code } = problem
    const body = JSON.stringify(problem)
    // The body of the request is read and dropped by Node: the connection stays of use.
    response.writeHead(STATUS, [
      ...fixed,
      ...['x-request-id', requestId(request)],
      ...['retry-after', String(retryAfterSec(retryAfterMs))],
      ...['content-length', String(Buffer.byteLength(body))],
    ])
    response.end(body)
    metrics.error(code)
    metrics.request(route, STATUS, performance.now() - job.startMs)
    tally.add({ method: 'POST', route, status: STATUS, code, key: job.caller.name })
    return true
  }

  return {
    refuses(request, response) {
      const { method, url = '', headers: asked } = request
      if (method !== 'POST' || !routes.has(url) || !isOpen()) return false
      if (hasCors && asked.origin !== undefined) return false
      if (isTracing && isSampled(asked.traceparent)) return false
      const key = auth.rankingKeyOf(request)
      if (key === undefined) return false
      const job = plainJobOf(request, key, routes.get(url))
      if (job === undefined) return false
      const found = admission.refusal(job, false)
      if (found === undefined) {
        passed.add(request)
        auth.remember(request, key)
        return false
      }
      // A refused request counts against the rate of its key, as on the long way.
      const waitSec = auth.waitSec(key)
      if (waitSec > 0) return refuse(request, response, job, auth.rateLimited(key), 1000 * waitSec)
      const { message, retryAfterMs } = admission.counted(job, found)
      const problem = { code: 'OVERLOADED', message, retryAfterMs } as const
      return refuse(request, response, job, problem, retryAfterMs)
    },
    hasPassed: (request) => passed.has(request),
    close: tally.close,
  }
}

/** Undefined where the headers hold something to complain of. */
function plainJobOf(
  { headers }: IncomingMessage,
  caller: ApiKey,
  priority: Priority | undefined,
): Job | undefined {
  try {
    return jobOfHeaders(headers, caller, performance.now(), priority)
  } catch (error) {
    if (error instanceof RankError) return undefined
    throw error
  }
}

/** The flag of a W3C traceparent. */
function isSampled(traceparent: string | string[] | undefined): boolean {
  return typeof traceparent === 'string' && (Number.parseInt(traceparent.slice(-2), 16) & 1) === 1
}

type Line = {
  readonly method: string
  readonly route: string
  readonly status: number
  readonly code: HttpCode
  readonly key: string
}

/** One line of log for all that is alike, with its count, once in a while. */
function createTally(log: FastifyBaseLogger) {
  const counts = new Map<string, { readonly line: Line; count: number }>()
  let timer: NodeJS.Timeout | undefined
  const write = () => {
    timer = undefined
    for (const { line, count } of counts.values()) log.info({ ...line, count }, 'requests refused')
    counts.clear()
  }
  return {
    add(line: Line): void {
      const name = `${line.route} ${line.code} ${line.key}`
      const known = counts.get(name)
      if (known === undefined) counts.set(name, { line, count: 1 })
      else known.count++
      timer ??= setTimeout(write, LOG_EVERY_MS).unref()
    },
    close(): void {
      clearTimeout(timer)
      write()
    },
  }
}
