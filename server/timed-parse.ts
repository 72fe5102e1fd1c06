import type { FastifyRequest } from 'fastify'
import type { Metrics } from './metrics.js'

/** Runs `parse` on a request's body, adding its time to what the body's parser took. */
export function timedParse<T>(
  { outcome, trace }: FastifyRequest,
  metrics: Pick<Metrics, 'stage'>,
  parse: () => T,
): T {
  const startMs = performance.now()
  try {
    return parse()
  } finally {
    const endMs = performance.now()
    outcome.parseMs += endMs - startMs
    metrics.stage('parse', outcome.parseMs, trace?.exemplar)
    trace?.onStep?.('parse', endMs - outcome.parseMs, endMs, {})
  }
}
