import { IncomingMessage, ServerResponse } from 'node:http'
import { Socket } from 'node:net'
import cors from '@fastify/cors'
import type { FastifyInstance } from 'fastify'
import helmet from 'helmet'

export type HeaderOptions = {
  /** Origins whose pages may call; [] = none but our own, `*` = all. */
  readonly corsOrigins: readonly string[]
  readonly isTls: boolean
}

const YEAR_SEC = 31_536_000
const PREFLIGHT_SEC = 600

/** What browsers are told about every answer. */
export function answerHeaders({ corsOrigins, isTls }: HeaderOptions) {
  const protect = helmet({
    // For JSON, which loads nothing; the playground and /docs have policies of their own.
    contentSecurityPolicy: {
      useDefaults: false,
      directives: { 'default-src': ["'none'"], 'frame-ancestors': ["'none'"] },
    },
    crossOriginResourcePolicy: { policy: corsOrigins.length > 0 ? 'cross-origin' : 'same-origin' },
    // Browsers complain of it on pages that came without TLS.
    crossOriginOpenerPolicy: isTls,
    strictTransportSecurity: isTls ? { maxAge: YEAR_SEC, includeSubDomains: false } : false,
  })
  // They are the same for all requests: asked for once, on a blank one.
  const request = new IncomingMessage(new Socket())
  const response = new ServerResponse(request)
  protect(request, response, (fault) => {
    if (fault instanceof Error) throw fault
  })
  const found = Object.entries(response.getHeaders())
  return [
    // Answers are about users.
    ['cache-control', 'no-store'],
    ...found.map(([name, value]) => [name, String(value)] as const),
  ] as const
}

/** Puts `headers` on every answer. Comes before the routes; a page may set its own. */
export async function addHeaders(
  app: FastifyInstance,
  headers: ReturnType<typeof answerHeaders>,
  corsOrigins: readonly string[],
): Promise<void> {
  app.addHook('onRequest', (_, { raw }, done) => {
    for (const [name, value] of headers) raw.setHeader(name, value)
    done()
  })
  if (corsOrigins.length === 0) return
  await app.register(cors, {
    origin: corsOrigins.includes('*') ? '*' : [...corsOrigins],
    methods: ['GET', 'HEAD', 'POST', 'DELETE'],
    exposedHeaders: ['retry-after', 'x-request-id'],
    maxAge: PREFLIGHT_SEC,
  })
}
