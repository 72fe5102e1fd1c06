import swagger from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import type { FastifyInstance } from 'fastify'
import type { TSchema } from 'typebox'
import {
  AnswerWarning,
  EventsAnswer,
  ExplainedKv,
  Kv,
  ModelList,
  PrefetchAnswer,
  Problem,
  RankAnswer,
  RankedItem,
  RankTimings,
  RetrieveAnswer,
  RetrievedItem,
  RetrieveTimings,
  UnknownItems,
  UserAnswer,
} from './answer-schema.js'
import { guarded, SECURITY_SCHEMES } from './docs-security.js'
import {
  AdminModel,
  AdminModelList,
  CanaryRequest,
  LoadRequest,
  PromoteRequest,
  ShadowRequest,
} from './models/schema.js'
import { MSGPACK } from './msgpack.js'
import {
  CandidateItem,
  EventsRequest,
  Features,
  HistoryEvent,
  PrefetchRequest,
  RankRequest,
  RetrieveRequest,
  SeriesEntry,
} from './schema.js'

/** Bodies by name. */
export const SCHEMAS = {
  RankRequest,
  RankAnswer,
  RetrieveRequest,
  RetrieveAnswer,
  PrefetchRequest,
  PrefetchAnswer,
  EventsRequest,
  EventsAnswer,
  UserAnswer,
  ModelList,
  AdminModel,
  AdminModelList,
  LoadRequest,
  PromoteRequest,
  CanaryRequest,
  ShadowRequest,
  Problem,
}

/** What several bodies hold: for clients, which name them once. */
export const PARTS = {
  ...{ Features, HistoryEvent, SeriesEntry, CandidateItem },
  ...{ Kv, ExplainedKv, AnswerWarning, UnknownItems },
  ...{ RankTimings, RankedItem, RetrieveTimings, RetrievedItem },
}

const DESCRIPTION = `Online ranking with HSTU generative recommenders: post a user, the history and
the candidates; get calibrated scores. Every error is \`{code, message, path?}\`; branch on \`code\`.`

/** Swagger UI sets styles on elements. */
const PAGE_POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self' 'unsafe-inline'",
  "img-src 'self' data:",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ')

/**
 * Serves the OpenAPI page at /docs and the document at /docs/json; `hasKeys` where API keys are asked
 * for. Comes before the routes.
 */
export async function addDocs(app: FastifyInstance, hasKeys: boolean): Promise<void> {
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: { title: 'Peregrine', description: DESCRIPTION, version: 'v1' },
      ...(hasKeys && { components: { securitySchemes: SECURITY_SCHEMES } }),
      tags: [
        { name: 'ranking', description: 'Scores for candidates.' },
        { name: 'retrieval', description: 'The next items for a user.' },
        { name: 'inference protocol', description: 'Open Inference Protocol v2.' },
        { name: 'users', description: 'What is kept of a user: the stored history and its K/V.' },
        { name: 'models', description: 'What is loaded.' },
        { name: 'admin', description: 'Load, promote and unload models.' },
        { name: 'operation', description: 'Probes and metrics.' },
      ],
    },
    ...(hasKeys && {
      transform: ({ schema, url, route }) => ({
        schema: guarded(schema, route, refusals(401, 403, 429)),
        url,
      }),
    }),
    refResolver: {
      buildLocalReference: (json, _base, _fragment, i) =>
        typeof json.$id === 'string' ? json.$id : `def-${i}`,
    },
  })
  await app.register(swaggerUi, { routePrefix: '/docs', staticCSP: PAGE_POLICY })
  for (const [$id, schema] of Object.entries(SCHEMAS)) {
    app.addSchema({ $id, ...schema })
  }
}

export function ref(name: keyof typeof SCHEMAS): TSchema {
  return { $ref: `${name}#` }
}

/** A body in JSON, or in MessagePack with what may be different there. */
export function inAllFormats(name: keyof typeof SCHEMAS, packed: string) {
  return {
    content: {
      'application/json': { schema: ref(name) },
      [MSGPACK]: { schema: { description: packed } },
    },
  }
}

const REFUSED = {
  400: 'INVALID_REQUEST: malformed JSON, or not what the schema says.',
  401: 'UNAUTHENTICATED: no API key, or one that is not known.',
  403: 'FORBIDDEN: the API key has another scope.',
  404: 'MODEL_NOT_FOUND.',
  409: 'CONFLICT: the models are not in the state for it.',
  413: 'LIMIT_EXCEEDED: the body is too large.',
  415: 'UNSUPPORTED_MEDIA_TYPE: neither application/json nor application/msgpack.',
  422: 'LIMIT_EXCEEDED: too many events, candidates or requests. BUNDLE_INVALID, MODEL_CONTRACT: a bundle was refused.',
  429: 'OVERLOADED: it would wait too long, or past its deadline, or its key asks for too much; RATE_LIMITED: its key has so many requests a second. See `retryAfterMs` and Retry-After.',
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
