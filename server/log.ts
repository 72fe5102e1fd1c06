import { randomUUID } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import { type DestinationStream, type Logger, pino } from 'pino'

const SANE_ID = /^[\x21-\x7e]{1,128}$/

/** JSON lines to stdout, or to `stream`. Log calls choose their fields; no request is ever logged whole. */
export function createLogger(
  level: string,
  stream: DestinationStream = pino.destination(1),
): Logger {
  return pino(
    {
      level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      // Fastify's own rare lines name the request, without its query, addresses and headers.
      serializers: {
        req: (request: { method?: string }) => ({ method: request.method }),
        res: (reply: { statusCode?: number }) => ({ status: reply.statusCode }),
      },
    },
    stream,
  )
}

/** The caller's `x-request-id` where it is sane (at most 128 printable characters), else a new one. */
export function requestId({ headers }: IncomingMessage): string {
  const id = headers['x-request-id']
  return typeof id === 'string' && SANE_ID.test(id) ? id : randomUUID()
}
