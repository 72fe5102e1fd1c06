import {
  type Attributes,
  type Context,
  DiagLogLevel,
  defaultTextMapGetter,
  diag,
  ROOT_CONTEXT,
  type Span,
  SpanKind,
  SpanStatusCode,
  TraceFlags,
  trace,
} from '@opentelemetry/api'
import { setGlobalErrorHandler, W3CTraceContextPropagator } from '@opentelemetry/core'
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-proto'
import {
  defaultResource,
  detectResources,
  envDetector,
  resourceFromAttributes,
  serviceInstanceIdDetector,
} from '@opentelemetry/resources'
import { BasicTracerProvider, BatchSpanProcessor } from '@opentelemetry/sdk-trace-base'
import type { Logger } from 'pino'
import { withinMs } from '../model/deferred.js'
import type { OnStep } from '../model/step.js'
import type { Build } from './build.js'
import { type HttpCode, STATUS } from './errors.js'
import type { Ranked } from './rank.js'
import type { RankingTrace, RequestToTrace, RequestTrace, Tracing } from './tracing.js'

/** What a stop waits for the collector: the SDK's 10 s of retries would keep a stopped process alive. */
const CLOSE_MS = 2000
/** A collector that is away is told of once in so long, not for every batch. */
const COMPLAIN_EVERY_MS = 60_000
const PREFIX = 'peregrine.'

/**
 * Spans to OTLP over HTTP. Endpoint, headers, sampler, batches and resource come from OpenTelemetry's
 * standard variables, which its SDK reads itself.
 */
export function createTracing(build: Build, log: Logger): Tracing {
  listenToSdk(log)
  const resource = defaultResource()
    .merge(
      resourceFromAttributes({ 'service.name': 'peregrine', 'service.version': build.version }),
    )
    .merge(detectResources({ detectors: [serviceInstanceIdDetector, envDetector] }))
  const provider = new BasicTracerProvider({
    resource,
    spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter(exporterOptions()))],
  })
  const tracer = provider.getTracer('peregrine', build.version)
  const propagator = new W3CTraceContextPropagator()

  /** Spans under `parent`, whose parts are known when they have ended. */
  const childrenOf =
    (parent: Context, offsetMs: number): OnStep =>
    (name, startMs, endMs, { error, ...attributes }) => {
      const options = { startTime: offsetMs + startMs, attributes: prefixed(attributes) }
      const span = tracer.startSpan(name, options, parent)
      if (error === true) span.setStatus({ code: SpanStatusCode.ERROR })
      span.end(offsetMs + endMs)
    }

  const beginRanking = (parent: Context, offsetMs: number): RankingTrace => {
    const span = tracer.startSpan('rank', { startTime: offsetMs + performance.now() }, parent)
    return {
      onStep: childrenOf(trace.setSpan(parent, span), offsetMs),
      end(ranked) {
        span.setAttributes(prefixed(attributesOf(ranked)))
        span.end(offsetMs + performance.now())
      },
      fail(code) {
        setFailure(span, STATUS[code], code)
        span.end(offsetMs + performance.now())
      },
    }
  }

  return {
    begin({ method, route, headers, id }: RequestToTrace): RequestTrace {
      // One clock for all spans of a request: this one's drift must not move some of them.
      const offsetMs = Date.now() - performance.now()
      const caller = propagator.extract(ROOT_CONTEXT, headers, defaultTextMapGetter)
      const options = {
        kind: SpanKind.SERVER,
        startTime: offsetMs + performance.now(),
        attributes: { 'http.request.method': method, 'http.route': route },
      }
      const span = tracer.startSpan(`${method} ${route}`, options, caller)
      const { traceId, spanId, traceFlags } = span.spanContext()
      const isSampled = (traceFlags & TraceFlags.SAMPLED) !== 0
      const exemplar = { trace_id: traceId, span_id: spanId }
      const ids = { ...exemplar, trace_flags: isSampled ? '01' : '00' } as const
      if (!isSampled) {
        return { ids, exemplar: undefined, onStep: undefined, ranking: undefined, end() {} }
      }
      span.setAttribute(`${PREFIX}request_id`, id)
      const own = trace.setSpan(caller, span)
      return {
        ids,
        exemplar,
        onStep: childrenOf(own, offsetMs),
        ranking: () => beginRanking(own, offsetMs),
        end(status, code) {
          span.setAttribute('http.response.status_code', status)
          if (code !== undefined) setFailure(span, status, code)
          span.end(offsetMs + performance.now())
        },
      }
    },
    async close() {
      // A collector that does not answer costs spans, and no more of the time that a stop has.
      await withinMs(
        provider.shutdown().catch(() => {}),
        CLOSE_MS,
        () => {},
      )
      diag.disable()
      setGlobalErrorHandler(() => {})
    },
  }
}

function exporterOptions() {
  const { OTEL_EXPORTER_OTLP_TIMEOUT, OTEL_EXPORTER_OTLP_TRACES_TIMEOUT } = process.env
  const isSet = [OTEL_EXPORTER_OTLP_TIMEOUT, OTEL_EXPORTER_OTLP_TRACES_TIMEOUT].some(Boolean)
  return isSet ? {} : { timeoutMillis: CLOSE_MS }
}

/** The SDK's own complaints. */
function listenToSdk(log: Logger): void {
  let complainedAt = Number.NEGATIVE_INFINITY
  const complain = (why: string) => {
    if (performance.now() - complainedAt < COMPLAIN_EVERY_MS) return
    complainedAt = performance.now()
    log.warn({ why }, 'tracing: spans may be missing')
  }
  const silent = () => {}
  diag.setLogger(
    { error: complain, warn: complain, info: silent, debug: silent, verbose: silent },
    { logLevel: DiagLogLevel.WARN, suppressOverrideMessage: true },
  )
  setGlobalErrorHandler((error) => {
    complain(error instanceof Error ? error.message : String(error))
  })
}

/** Who sent what cannot be served made no error of ours. */
function setFailure(span: Span, status: number, code: HttpCode): void {
  span.setAttribute('error.type', code)
  if (status >= 500) span.setStatus({ code: SpanStatusCode.ERROR })
}

function attributesOf({ result, retries }: Ranked): Attributes {
  const { kv } = result
  return {
    candidates: result.candidates,
    scored: result.scored,
    history_tokens: result.historyTokens,
    micro_batches: result.microBatches,
    retries,
    'kv.state': kv.state,
    'kv.reused_tokens': kv.reusedTokens,
    'kv.prefilled_tokens': kv.prefilledTokens,
    ...(kv.tier !== undefined && { 'kv.tier': kv.tier }),
    ...(kv.decision !== undefined && { 'kv.decision': kv.decision }),
  }
}

function prefixed(attributes: Attributes): Attributes {
  return Object.fromEntries(
    Object.entries(attributes).map(([name, value]) => [`${PREFIX}${name}`, value]),
  )
}
