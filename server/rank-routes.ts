import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import Type from 'typebox'
import { toAnswer } from './answer.js'
import { ref, refusals } from './docs.js'
import { clientOf, type Door } from './door.js'
import { isFault, problemOf } from './errors.js'
import type { Metrics } from './metrics.js'
import type { Shadows } from './models/shadow.js'
import type { ModelSource } from './models/source.js'
import { type Limits, type Parsed, parseBatch, parseRank } from './parse.js'
import { rankOnce } from './rank.js'

export type RankRoutes = {
  readonly door: Door
  readonly models: ModelSource
  readonly shadows: Shadows
  readonly limits: Limits
  readonly metrics: Metrics
  readonly nowSec: () => number
}

const rankSchema = {
  tags: ['ranking'],
  summary: 'Rank candidates for one user',
  body: ref('RankRequest'),
  response: {
    200: ref('RankAnswer'),
    ...refusals(400, 404, 413, 415, 422, 429, 500, 503, 504),
  },
}

const batchSchema = {
  tags: ['ranking'],
  summary: 'Rank several requests at once',
  description:
    'Answers in the order of the requests. One that fails is an `error` in its place and loses no other.',
  body: Type.Object(
    { requests: Type.Array(ref('RankRequest'), { minItems: 1 }) },
    { additionalProperties: false },
  ),
  response: {
    200: Type.Object(
      {
        results: Type.Array(
          Type.Union([ref('RankAnswer'), Type.Object({ error: ref('Problem') })]),
        ),
      },
      { description: 'One result per request.' },
    ),
    ...refusals(400, 413, 415, 422, 429, 500, 503),
  },
}

/** Adds POST /v1/rank and POST /v1/rank/batch. */
export function addRankRoutes(app: FastifyInstance, parts: RankRoutes): void {
  const { door, models, shadows, limits, metrics, nowSec } = parts

  /** Runs `parse`, adding its time to that of the JSON. */
  function timed<T>({ outcome }: FastifyRequest, parse: () => T): T {
    const startMs = performance.now()
    try {
      return parse()
    } finally {
      outcome.parseMs += performance.now() - startMs
      metrics.stage('parse', outcome.parseMs)
    }
  }

  async function answer({ outcome }: FastifyRequest, parsed: Parsed, signal: AbortSignal) {
    const model = models.lease(parsed.model, parsed.input.user.id)
    try {
      const { result, retries } = await rankOnce(model.ranker, parsed, signal)
      metrics.ranked(model.id, result, retries)
      shadows.offer(model.name, parsed, result)
      outcome.candidates += result.candidates
      outcome.historyTokens += result.historyTokens
      outcome.kv = outcome.requests === 1 ? result.kv.state : undefined
      const run = parsed.explain ? { parseMs: outcome.parseMs, retries } : undefined
      return toAnswer(model.id, result, run)
    } finally {
      model.done()
    }
  }

  /** An entry of a batch that failed, in place of its answer. */
  function failure({ outcome, log }: FastifyRequest, error: unknown) {
    if (isFault(error)) log.error({ err: error }, 'ranking failed')
    const problem = problemOf(error)
    outcome.failed++
    // The client of the whole batch left: counted once, with the request.
    if (problem.code !== 'CANCELLED') metrics.error(problem.code)
    return { error: problem }
  }

  // JSON.stringify, not the compiled serializer: 14 ms against 31 ms for 16,384 items of three
  // tasks (2.4 MB; Node 20, one core). The response schemas only document.
  const serializerCompiler =
    ({ httpStatus }: { httpStatus?: string }) =>
    (payload: unknown) => {
      const startMs = performance.now()
      const text = JSON.stringify(payload)
      if (httpStatus === '200') metrics.stage('serialize', performance.now() - startMs)
      return text
    }

  // Refuses before the body is read.
  const onRequest = async (_: FastifyRequest, reply: FastifyReply) => {
    door.open(reply, 1)
  }

  app.post(
    '/v1/rank',
    { schema: rankSchema, serializerCompiler, onRequest },
    async (request, reply) => {
      const parsed = timed(request, () => parseRank(request.body, limits, nowSec()))
      request.outcome.requests = 1
      return door.admit(reply, 1, () => answer(request, parsed, clientOf(reply)))
    },
  )

  app.post(
    '/v1/rank/batch',
    { schema: batchSchema, serializerCompiler, onRequest },
    async (request, reply) => {
      const entries = timed(request, () =>
        parseBatch(request.body, limits).map((body) => {
          try {
            return { kind: 'parsed', parsed: parseRank(body, limits, nowSec()) } as const
          } catch (error) {
            return { kind: 'refused', error } as const
          }
        }),
      )
      request.outcome.requests = entries.length
      return door.admit(reply, entries.length, async () => {
        const signal = clientOf(reply)
        const results = entries.map(async (entry) => {
          if (entry.kind === 'refused') return failure(request, entry.error)
          return answer(request, entry.parsed, signal).catch((error) => failure(request, error))
        })
        return { results: await Promise.all(results) }
      })
    },
  )
}
