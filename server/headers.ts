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

/** What browsers are told about every answer. Comes before the routes; a page may set its own. */
export async function addHeaders(app: FastifyInstance, options: HeaderOptions): Promise<void> {
  const { corsOrigins, isTls } = options
  // Made once: @fastify/helmet makes it anew for each request.
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
  app.addHook('onRequest', (request, reply, done) => {
    // Answers are about users.
    reply.header('cache-control', 'no-store')
    protect(request.raw, reply.raw, (fault) => (fault instanceof Error ? done(fault) : done()))
  })
  if (corsOrigins.length === 0) return
  await app.register(cors, {
    origin: corsOrigins.includes('*') ? '*' : [...corsOrigins],
    methods: ['GET', 'HEAD', 'POST', 'DELETE'],
    exposedHeaders: ['retry-after', 'x-request-id'],
    maxAge: PREFLIGHT_SEC,
  })
}
