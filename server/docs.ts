import swagger from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import type { FastifyInstance } from 'fastify'
import type { TSchema } from 'typebox'
import {
  EventsAnswer,
  ModelList,
  PrefetchAnswer,
  Problem,
  RankAnswer,
  UserAnswer,
} from './answer-schema.js'
import { EventsRequest, PrefetchRequest, RankRequest } from './schema.js'

const SCHEMAS = {
  RankRequest,
  RankAnswer,
  PrefetchRequest,
  PrefetchAnswer,
  EventsRequest,
  EventsAnswer,
  UserAnswer,
  ModelList,
  Problem,
}

const DESCRIPTION = `Online ranking with HSTU generative recommenders: post a user, the history and
the candidates; get calibrated scores. Every error is \`{code, message, path?}\`; branch on \`code\`.`

/** Serves the OpenAPI page at /docs and the document at /docs/json. Comes before the routes. */
export async function addDocs(app: FastifyInstance): Promise<void> {
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: { title: 'Peregrine', description: DESCRIPTION, version: 'v1' },
      tags: [
        { name: 'ranking', description: 'Scores for candidates.' },
        { name: 'users', description: 'What is kept of a user: the stored history and its K/V.' },
        { name: 'models', description: 'What is loaded.' },
        { name: 'operation', description: 'Probes and metrics.' },
      ],
    },
    refResolver: {
      buildLocalReference: (json, _base, _fragment, i) =>
        typeof json.$id === 'string' ? json.$id : `def-${i}`,
    },
  })
  await app.register(swaggerUi, { routePrefix: '/docs' })
  for (const [$id, schema] of Object.entries(SCHEMAS)) {
    app.addSchema({ $id, ...schema })
  }
}

export function ref(name: keyof typeof SCHEMAS): TSchema {
  return { $ref: `${name}#` }
}

const REFUSED = {
  400: 'INVALID_REQUEST: malformed JSON, or not what the schema says.',
  404: 'MODEL_NOT_FOUND.',
  413: 'LIMIT_EXCEEDED: the body is too large.',
  415: 'UNSUPPORTED_MEDIA_TYPE: not application/json.',
  422: 'LIMIT_EXCEEDED: too many events, candidates or requests.',
  429: 'OVERLOADED: it would wait too long, or past its deadline, or its key asks for too much; see `retryAfterMs` and Retry-After.',
  500: 'INTERNAL and other faults of the service.',
  503: 'NOT_READY, WORKER_CRASHED or STORE_UNAVAILABLE; see Retry-After.',
  504: 'DEADLINE_EXCEEDED.',
} as const

/** Response schemas of refusals, by status. */
export function refusals(...statuses: (keyof typeof REFUSED)[]): { [status: number]: unknown } {
  return Object.fromEntries(
    statuses.map((status) => [
      status,
      {
        description: REFUSED[status],
        content: { 'application/json': { schema: ref('Problem') } },
      },
    ]),
  )
}
