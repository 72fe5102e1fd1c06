import type { IncomingHttpHeaders } from 'node:http'
import type { Logger } from 'pino'
import { RankError } from '../model/errors.js'
import type { OnStep } from '../model/step.js'
import type { Build } from './build.js'
import { type HttpCode, problemOf } from './errors.js'
import type { Ranked } from './rank.js'

/** Names a trace from a bucket of a histogram. */
export type Exemplar = { readonly trace_id: string; readonly span_id: string }

/** Fields of a log line, called as OpenTelemetry wants them in logs that it does not carry itself. */
export type TraceIds = Exemplar & { readonly trace_flags: '00' | '01' }

/** A span in a request's trace. */
export type RankingTrace = {
  readonly onStep: OnStep
  end(ranked: Ranked): void
  fail(code: HttpCode): void
}

/** The span of one HTTP request. */
export type RequestTrace = {
  readonly ids: TraceIds
  /** Undefined where the trace is not sampled, and so nowhere to be seen; the next two likewise. */
  readonly exemplar: Exemplar | undefined
  /** For what the request itself does. */
  readonly onStep: OnStep | undefined
  /** Begins the span of one of the request's rankings. */
  readonly ranking: (() => RankingTrace) | undefined
  end(status: number, code: HttpCode | undefined): void
}

export type RequestToTrace = {
  readonly method: string
  /** The route's pattern: the URL may hold a user's id. */
  readonly route: string
  readonly headers: IncomingHttpHeaders
  /** The `x-request-id`. */
  readonly id: string
}

export type Tracing = {
  /** Continues the caller's trace (`traceparent`), or begins one. */
  begin(request: RequestToTrace): RequestTrace
  /** Exports what is left, for a short while. */
  close(): Promise<void>
}

declare module 'fastify' {
  interface FastifyRequest {
    /** Absent where nothing is traced. */
    trace: RequestTrace | undefined
  }
}

const ENDPOINTS = ['OTEL_EXPORTER_OTLP_TRACES_ENDPOINT', 'OTEL_EXPORTER_OTLP_ENDPOINT']
const PROTOCOLS = ['OTEL_EXPORTER_OTLP_TRACES_PROTOCOL', 'OTEL_EXPORTER_OTLP_PROTOCOL']
const PROTOCOL = 'http/protobuf'

/**
 * Tracing as OpenTelemetry's variables ask for it; undefined, and nothing of it loaded, without an
 * endpoint to export to.
 * @throws {RankError} CONFIG_INVALID for an endpoint that is no URL and for another protocol
 */
export async function openTracing(build: Build, log: Logger): Promise<Tracing | undefined> {
  const { env } = process
  const name = ENDPOINTS.find((variable) => (env[variable] ?? '') !== '')
  const isOff = env.OTEL_SDK_DISABLED === 'true' || env.OTEL_TRACES_EXPORTER === 'none'
  if (name === undefined || isOff) return undefined
  const endpoint = env[name] ?? ''
  if (!/^https?:$/.test(protocolOf(endpoint))) {
    throw new RankError('CONFIG_INVALID', `${name} must be an http or https URL, got another text`)
  }
  for (const variable of PROTOCOLS) {
    const protocol = env[variable] ?? PROTOCOL
    if (protocol === PROTOCOL) continue
    const message = `${variable} must be ${PROTOCOL}, got ${JSON.stringify(protocol)}`
    throw new RankError('CONFIG_INVALID', message)
  }
  const { createTracing } = await import('./otel.js')
  return createTracing(build, log)
}

/** Does `rank` in a span of its own, where the request is traced. */
export async function tracedRanking(
  trace: RequestTrace | undefined,
  rank: (onStep: OnStep | undefined) => Promise<Ranked>,
): Promise<Ranked> {
  const ranking = trace?.ranking?.()
  if (ranking === undefined) return rank(undefined)
  try {
    const ranked = await rank(ranking.onStep)
    ranking.end(ranked)
    return ranked
  } catch (error) {
    ranking.fail(problemOf(error).code)
    throw error
  }
}

function protocolOf(url: string): string {
  try {
    return new URL(url).protocol
  } catch {
    return ''
  }
}
