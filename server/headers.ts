import cors from '@fastify/cors'
import helmet from '@fastify/helmet'
import type { FastifyInstance } from 'fastify'

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
  await app.register(helmet, {
    // For JSON, which loads nothing; the playground and /docs have policies of their own.
    contentSecurityPolicy: {
      useDefaults: false,
      directives: { 'default-src': ["'none'"], 'frame-ancestors': ["'none'"] },
    },
    crossOriginResourcePolicy: { policy: corsOrigins.length > 0 ? 'cross-origin' : 'same-origin' },
    strictTransportSecurity: isTls ? { maxAge: YEAR_SEC, includeSubDomains: false } : false,
  })
  // Answers are about users.
  app.addHook('onRequest', async (_, reply) => {
    reply.header('cache-control', 'no-store')
  })
  if (corsOrigins.length === 0) return
  await app.register(cors, {
    origin: corsOrigins.includes('*') ? '*' : [...corsOrigins],
    methods: ['GET', 'HEAD', 'POST', 'DELETE'],
    exposedHeaders: ['retry-after', 'x-request-id'],
    maxAge: PREFLIGHT_SEC,
  })
}
