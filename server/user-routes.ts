import { setMaxListeners } from 'node:events'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import Type from 'typebox'
import type { PrefetchResult, Ranker } from '../falcon/types.js'
import { ref, refusals } from './docs.js'
import { clientOf, type Door } from './door.js'
import { isFault, problemOf } from './errors.js'
import type { Metrics } from './metrics.js'
import type { ModelSource } from './models/source.js'
import type { ModelLease } from './models/version.js'
import {
  type Limits,
  type ParsedPrefetch,
  parseEvents,
  parsePrefetch,
  parseUserId,
} from './parse.js'
import { asWritten } from './rank.js'
import { inTurn } from './turn.js'

export type UserRoutes = {
  readonly door: Door
  readonly models: ModelSource
  readonly limits: Limits
  readonly metrics: Metrics
  readonly nowSec: () => number
}

/** Never in the way of a ranking: what is made ahead can wait. */
export const PREFETCH_PRIORITY = 'low'

const params = Type.Object({ id: Type.String({ description: 'The user.' }) })

const eventsSchema = {
  tags: ['users'],
  summary: 'Append to the stored history of a user',
  description:
    'All events are stored or none. A retry adds nothing twice; with an idempotency key, in the body or as the header Idempotency-Key, it also gets the first answer.',
  params,
  headers: Type.Object({ 'idempotency-key': Type.Optional(Type.String()) }),
  body: ref('EventsRequest'),
  response: { 200: ref('EventsAnswer'), ...refusals(400, 413, 415, 422, 500, 503) },
}

const stateSchema = {
  tags: ['users'],
  summary: 'What is kept of a user',
  params,
  response: { 200: ref('UserAnswer'), ...refusals(400, 500, 503) },
}

const forgetSchema = {
  tags: ['users'],
  summary: 'Forget a user',
  description:
    'The stored history and the K/V, in this process and in all that share its Redis. After a 503 some of it may be gone: repeat it. Answers to idempotency keys stay for a day, so that a late retry brings nothing back.',
  params,
  response: { 204: Type.Null({ description: 'Forgotten.' }), ...refusals(400, 500, 503) },
}

const prefetchSchema = {
  tags: ['users'],
  summary: 'Make a user’s K/V ahead of a ranking',
  description: 'A ranking of the same history that comes meanwhile waits for it.',
  body: ref('PrefetchRequest'),
  response: {
    200: ref('PrefetchAnswer'),
    202: ref('PrefetchAnswer'),
    ...refusals(400, 404, 413, 415, 422, 429, 500, 503),
  },
}

/** Adds /v1/users/{id}, /v1/users/{id}/events and /v1/prefetch. */
export function addUserRoutes(app: FastifyInstance, parts: UserRoutes): void {
  const { door, limits, metrics, nowSec } = parts
  /** Prefetches that nobody waits for; they end with the app. */
  const unwatched = new Set<Promise<void>>()
  const closing = new AbortController()
  setMaxListeners(0, closing.signal)
  app.addHook('onClose', async () => {
    closing.abort()
    await Promise.all(unwatched)
  })

  // Refuses before the body is read.
  const isLoaded = async () => {
    door.loaded()
  }
  const hasRoom = async (request: FastifyRequest, reply: FastifyReply) => {
    door.open(request, reply, PREFETCH_PRIORITY)
  }

  app.post(
    '/v1/users/:id/events',
    { schema: eventsSchema, onRequest: isLoaded },
    async (request) => {
      const id = parseUserId(request.params)
      const header = request.headers['idempotency-key']
      const { events, idempotencyKey } = parseEvents(request.body, header, limits)
      const appended = await door.loaded().appendEvents(id, events, idempotencyKey)
      metrics.appended(appended)
      return appended
    },
  )

  app.get('/v1/users/:id', { schema: stateSchema }, async (request) => {
    const ranker = door.loaded()
    const id = parseUserId(request.params)
    const [events, kvTokens] = await Promise.all([ranker.eventsOf(id), ranker.kvOf(id)])
    const [first, last] = [events[0], events.at(-1)]
    return {
      user: { id },
      count: events.length,
      ...(first !== undefined && { firstTime: first.time }),
      ...(last !== undefined && { lastTime: last.time }),
      kvTokens,
      events,
    }
  })

  app.delete('/v1/users/:id', { schema: forgetSchema }, async (request, reply) => {
    const ranker = door.loaded()
    await ranker.forget(parseUserId(request.params))
    return reply.code(204).send()
  })

  async function start(
    { trace }: FastifyRequest,
    ranker: Ranker,
    parsed: ParsedPrefetch,
    signal: AbortSignal,
  ) {
    const onStep = trace?.onStep
    try {
      return await ranker.prefetch(parsed.input, {
        ...{ signal, useStored: parsed.useStored },
        ...(onStep !== undefined && { onStep }),
      })
    } catch (error) {
      throw asWritten(error, parsed.mainHistories)
    }
  }

  async function finish(model: ModelLease, { kv }: PrefetchResult) {
    const use = await kv
    metrics.prefetched(model.id, use)
    return use
  }

  app.post(
    '/v1/prefetch',
    { schema: prefetchSchema, onRequest: hasRoom },
    async (request, reply) => {
      const parsed = parsePrefetch(request.body, limits, nowSec())
      const signal = parsed.wait ? clientOf(reply) : closing.signal
      const wanted = { model: parsed.model, userId: parsed.input.user.id, signal }
      const ask = (ranker: Ranker) => ({ workMs: ranker.predictPrefetchMs(parsed.input, parsed) })
      if (parsed.wait) {
        return inTurn(request, parts, wanted, ask, async (model) => {
          const prefetch = await start(request, model.ranker, parsed, signal)
          const kv = await finish(model, prefetch)
          return { model: model.id, kv, warnings: prefetch.warnings }
        })
      }
      return await new Promise((resolve, reject) => {
        let isAnswered = false
        // The model stays loaded until the K/V is there.
        const work = inTurn(request, parts, wanted, ask, async (model) => {
          const prefetch = await start(request, model.ranker, parsed, signal)
          isAnswered = true
          reply.code(202)
          resolve({ model: model.id, warnings: prefetch.warnings })
          await finish(model, prefetch)
        })
        const settled = work.catch((error: unknown) => {
          if (isAnswered) failed(request, error)
          else reject(error)
        })
        unwatched.add(settled)
        void settled.finally(() => unwatched.delete(settled))
      })
    },
  )

  /** Of what is answered already. */
  function failed({ log }: FastifyRequest, error: unknown): void {
    if (closing.signal.aborted) return
    if (isFault(error)) log.error({ err: error }, 'prefetch failed')
    metrics.error(problemOf(error).code)
  }
}
