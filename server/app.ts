import Fastify, {
  type FastifyBaseLogger,
  type FastifyInstance,
  type FastifyRequest,
  LogController,
} from 'fastify'
import { pino } from 'pino'
import type { Registry } from 'prom-client'
import Type from 'typebox'
import type { Ranker } from '../falcon/types.js'
import { createAdmission } from './admission.js'
import { createAuth } from './auth.js'
import { addJsonParser, type InBodyTurn } from './body.js'
import { createBodyBudget } from './body-budget.js'
import { addCompression } from './compression.js'
import { addDocs, ref } from './docs.js'
import { createDoor } from './door.js'
import { clientErrorHandler, errorHandler, notFoundHandler, STATUS } from './errors.js'
import type { Priority } from './fair-queue.js'
import { createGate } from './gate.js'
import { addHeaders, answerHeaders } from './headers.js'
import type { StoredKey } from './key-file.js'
import { createListener, type Listener } from './listener.js'
import { requestId } from './log.js'
import { createLoopQueue } from './loop-queue.js'
import { createMetrics } from './metrics.js'
import { type AdminRoutes, addAdminRoutes } from './models/admin-routes.js'
import type { Models } from './models/registry.js'
import { createShadows } from './models/shadow.js'
import { singleModel, sourceOf } from './models/source.js'
import { addMsgpackParser } from './msgpack.js'
import { addOipRoutes } from './oip/routes.js'
import { expose } from './openmetrics.js'
import { newOutcome } from './outcome.js'
import type { Limits } from './parse.js'
import { addPlayground } from './playground/routes.js'
import { createQueueMetrics } from './queue-metrics.js'
import { addRankRoutes } from './rank-routes.js'
import { addRetrieveRoute } from './retrieve-route.js'
import { MAX_ID_CHARS } from './schema.js'
import type { Tracing } from './tracing.js'
import { addUserRoutes, PREFETCH_PRIORITY } from './user-routes.js'

export type AppOptions = {
  /** Of the default model's stable version; undefined while nothing is loaded. */
  readonly ranker: () => Ranker | undefined
  /** All of them, and how they are changed; `ranker` is the only one when absent. */
  readonly models?: { readonly all: Models } & Omit<AdminRoutes, 'models'>
  /** True from the first signal on: still serving, but not ready for more. */
  readonly isDraining?: () => boolean
  readonly config: Limits & {
    readonly bodyLimitBytes: number
    /** The longest that a request may be expected to wait for its turn. */
    readonly maxQueueMs: number
    /** For bodies that are read or whose requests are under way. */
    readonly bodyBudgetBytes: number
    /** Whether a page at / lets people try the model. */
    readonly playground: boolean
  }
  /** Gets Peregrine's metrics; one registry per app. */
  readonly registry: Registry
  /** The API keys of now; absent = none are asked for. */
  readonly keys?: () => readonly StoredKey[]
  /** Origins whose pages may call, or `*`; absent = none but its own. */
  readonly corsOrigins?: readonly string[]
  /** What listens; absent = plain HTTP. */
  readonly listener?: Listener
  /** The clock of the keys' rates, in milliseconds. */
  readonly nowMs?: () => number
  /** Nothing is traced when absent. */
  readonly tracing?: Tracing
  /** Silent when absent. */
  readonly logger?: FastifyBaseLogger
  /** The time of requests that have none, in whole seconds since the epoch. */
  readonly nowSec?: () => number
}

/** A user id in a URL, where each of its characters may be nine. */
const MAX_PARAM_CHARS = 9 * MAX_ID_CHARS
const NOT_LOADED = { runs: 1, requests: 1 }
/** What rankings wait for, most of all under overload; the other ways to them go all of the long way. */
const GATED: ReadonlyMap<string, Priority | undefined> = new Map([
  ['/v1/rank', undefined],
  ['/v1/rank/batch', undefined],
  ['/v1/retrieve', undefined],
  ['/v1/prefetch', PREFETCH_PRIORITY],
])
/** Asked every few seconds by machines: logged at debug. */
const PROBES = new Set(['/livez', '/readyz', '/metrics'])
/** What is traced: neither probes nor pages. */
const API = /^\/v\d+\//

/** Builds the HTTP app around `ranker`. It does not listen, so tests use `app.inject`. */
export async function buildApp(options: AppOptions): Promise<FastifyInstance> {
  const { ranker, isDraining = () => false, config, registry, tracing } = options
  const nowSec = options.nowSec ?? (() => Math.floor(Date.now() / 1000))
  const queueMetrics = createQueueMetrics(registry)
  const maxBodyBytes = config.bodyLimitBytes
  const loop = createLoopQueue({ maxBodyBytes })
  const admission = createAdmission({
    ...{ maxQueueMs: config.maxQueueMs, maxBodyBytes, loop },
    depth: () => ranker()?.depth() ?? NOT_LOADED,
    on: queueMetrics,
  })
  queueMetrics.watch(admission)
  const models = options.models === undefined ? singleModel(ranker) : sourceOf(options.models.all)
  const metrics = createMetrics(registry, models.loaded, admission.inFlight)
  const shadows = createShadows({
    models,
    registry,
    hasRoom: () => admission.inFlight() < (ranker()?.stats().engine.workers ?? 0),
  })
  models.onGone((id) => {
    metrics.forget(id)
    shadows.forget(id)
  })
  const loggerInstance: FastifyBaseLogger = options.logger ?? pino({ level: 'silent' })
  const listener = options.listener ?? createListener()
  listener.addMetrics(registry)
  const { corsOrigins = [], keys, nowMs } = options
  const headers = answerHeaders({ corsOrigins, isTls: listener.scheme === 'https' })
  const auth = createAuth({ keys, nowMs, needsCertificate: listener.needsCertificate })
  const gate = createGate({
    routes: GATED,
    isOpen: () => !isDraining() && ranker() !== undefined,
    ...{ auth, admission, metrics, headers, hasCors: corsOrigins.length > 0 },
    ...{ isTracing: tracing !== undefined, log: loggerInstance },
  })
  const app = Fastify({
    loggerInstance,
    logController: new LogController({ disableRequestLogging: true }),
    genReqId: requestId,
    bodyLimit: config.bodyLimitBytes,
    serverFactory: (handler, serverOptions) =>
      listener.serverFactory((request, response) => {
        if (!gate.refuses(request, response)) handler(request, response)
      }, serverOptions),
    // What comes on a connection that is still open while draining is served, and told to go.
    return503OnClosing: false,
    clientErrorHandler,
    routerOptions: { maxParamLength: MAX_PARAM_CHARS },
    frameworkErrors(_error, request, reply) {
      reply.raw.writeHead(400, {
        'content-type': 'application/json; charset=utf-8',
        'x-request-id': request.id,
      })
      reply.raw.end(JSON.stringify({ code: 'INVALID_REQUEST', message: 'malformed URL' }))
    },
  })
  app.setErrorHandler(errorHandler)
  app.setNotFoundHandler(notFoundHandler)
  // Bodies are checked in parse.ts: the schemas of the routes document. JSON.stringify is faster than the
  // compiled serializer: 14 ms against 31 ms for 16,384 items of three tasks (2.4 MB; Node 20, one core).
  app.setValidatorCompiler(() => () => true)
  app.setSerializerCompiler(() => (payload) => JSON.stringify(payload))

  app.decorateRequest('outcome')
  app.decorateRequest('trace')
  app.addHook('onRequest', async (request, reply) => {
    request.outcome = newOutcome()
    reply.header('x-request-id', request.id)
    const route = request.routeOptions.url
    if (tracing !== undefined && route !== undefined && API.test(route)) {
      const { method, headers, id } = request
      request.trace = tracing.begin({ method, route, headers, id })
      request.log = request.log.child(request.trace.ids)
    }
    // Not the onRequestAbort hook: it no longer fires once the body has been read.
    reply.raw.once('close', () => {
      if (reply.raw.writableFinished) return
      request.outcome.code = 'CANCELLED'
      conclude(request, STATUS.CANCELLED)
    })
  })
  // A connection kept alive would hold the drain until it times out.
  app.addHook('onSend', async (_, reply) => {
    if (isDraining()) reply.header('connection', 'close')
  })
  app.addHook('onClose', async () => gate.close())
  app.addHook('onResponse', async (request, reply) => {
    conclude(request, reply.statusCode, reply.elapsedTime)
  })

  /** The log line and the metrics of a request, once. */
  function conclude(request: FastifyRequest, status: number, tookMs?: number): void {
    const { outcome, method, trace } = request
    if (outcome.isWritten) return
    outcome.isWritten = true
    const route = request.is404 ? 'none' : (request.routeOptions.url ?? 'none')
    if (outcome.code !== undefined) metrics.error(outcome.code)
    metrics.request(route, status, tookMs, trace?.exemplar)
    trace?.end(status, outcome.code)
    const { requests, candidates, historyTokens, kv, code, key, failed } = outcome
    const ranked = requests > 0 ? { requests, failed, candidates, historyTokens, kv } : {}
    const ms = tookMs === undefined ? undefined : Math.round(tookMs * 1000) / 1000
    const line = { method, route, status, ms, code, key, ...ranked }
    if (PROBES.has(route)) request.log.debug(line, 'request')
    else request.log.info(line, 'request')
  }

  await addHeaders(app, headers, corsOrigins)
  auth.addTo(app)
  await addCompression(app)
  await addDocs(app, keys !== undefined)
  const door = createDoor({
    ...{ ranker, admission },
    bodies: createBodyBudget(config.bodyBudgetBytes),
    callerOf: ({ apiKey }) => apiKey,
    hasPassed: gate.hasPassed,
  })
  const inBodyTurn: InBodyTurn = (request, bytes, task) =>
    loop.run(door.ownerOf(request), bytes, task)
  addJsonParser(app, inBodyTurn)
  addMsgpackParser(app, config.maxCandidates, inBodyTurn)
  const parts = { door, models, shadows, limits: config, metrics, nowSec }
  addRankRoutes(app, parts)
  addRetrieveRoute(app, parts)
  addOipRoutes(app, {
    ...{ ...parts, inBodyTurn },
    isReady: () => readiness(isDraining(), ranker()) === 'ready',
  })
  addUserRoutes(app, parts)

  if (config.playground) addPlayground(app, () => ranker()?.model.name)
  app.get(
    '/v1/models',
    {
      schema: { tags: ['models'], summary: 'List the models', response: { 200: ref('ModelList') } },
    },
    async () => {
      const loaded = models.loaded()
      return {
        models: loaded.map(({ ranker: { model }, state, labels }) => ({ ...model, state, labels })),
      }
    },
  )
  if (options.models !== undefined) {
    addAdminRoutes(app, { ...options.models, models: options.models.all })
  }
  app.get('/livez', probe('The process lives', 200), async () => ({ status: 'ok' }))
  app.get('/readyz', probe('The model is warm', 200, 503), async (_, reply) => {
    const status = readiness(isDraining(), ranker())
    return reply.code(status === 'ready' ? 200 : 503).send({ status })
  })
  app.get(
    '/metrics',
    { schema: { tags: ['operation'], summary: 'Prometheus metrics', produces: ['text/plain'] } },
    async ({ headers }, reply) => {
      const { contentType, text } = await expose(registry, headers.accept)
      return reply.type(contentType).send(text)
    },
  )
  return app
}

/** `crashed`: every worker is gone, for now or for good, as with a GPU; another replica does better. */
function readiness(isDraining: boolean, ranker: Ranker | undefined) {
  if (isDraining) return 'draining'
  if (ranker === undefined) return 'loading'
  return ranker.stats().engine.workers === 0 ? 'crashed' : 'ready'
}

function probe(summary: string, ...statuses: number[]) {
  const body = Type.Object({ status: Type.String() }, { description: summary })
  const response = Object.fromEntries(statuses.map((status) => [status, body]))
  return { schema: { tags: ['operation'], summary, response } }
}
