import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import Type from 'typebox'
import { toAnswer } from './answer.js'
import { inAllFormats, ref, refusals } from './docs.js'
import { clientOf, type Door, HEADERS, type Turn } from './door.js'
import { isFault, problemOf } from './errors.js'
import type { Metrics } from './metrics.js'
import type { Shadows } from './models/shadow.js'
import type { ModelSource } from './models/source.js'
import type { ModelLease } from './models/version.js'
import { type Limits, type Parsed, parseBatch, parseRank } from './parse.js'
import { askOf, rankCounted } from './rank.js'
import { createSerializing } from './serialize.js'
import { timedParse } from './timed-parse.js'
import { inTurn } from './turn.js'

export type RankRoutes = {
  readonly door: Door
  readonly models: ModelSource
  readonly shadows: Shadows
  readonly limits: Limits
  readonly metrics: Metrics
  readonly nowSec: () => number
}

const PACKED_REQUEST =
  'As in JSON; `candidates` may also be binary: item ids as little-endian uint64, 8 bytes each.'
const PACKED_ANSWER =
  'As in JSON; where the candidates came packed, `packed` stands for `items`: `index` (uint32, places in the candidates), `score` and `tasks` by name (float32), little-endian, best first.'

const rankSchema = {
  tags: ['ranking'],
  summary: 'Rank candidates for one user',
  headers: HEADERS,
  body: inAllFormats('RankRequest', PACKED_REQUEST),
  response: {
    200: { description: 'The ranking.', ...inAllFormats('RankAnswer', PACKED_ANSWER) },
    ...refusals(400, 404, 413, 415, 422, 429, 500, 503, 504),
  },
}

const batchSchema = {
  tags: ['ranking'],
  summary: 'Rank several requests at once',
  description:
    'Answers in the order of the requests. One that fails is an `error` in its place and loses no other.',
  headers: HEADERS,
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
  const { hooks, written } = createSerializing(metrics)

  async function answer(
    request: FastifyRequest,
    model: ModelLease,
    parsed: Parsed,
    turn: Turn & { readonly signal: AbortSignal },
  ) {
    const { outcome, isPacked } = request
    const { result, retries } = await rankCounted(request, metrics, model, parsed, turn)
    shadows.offer(model.name, parsed, result)
    const run = parsed.explain ? { parseMs: outcome.parseMs, retries } : undefined
    const packed = isPacked ? model.ranker.model.tasks : undefined
    return toAnswer(model.id, result, turn.waitedMs, run, packed)
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

  // Refuses before the body is read.
  const onRequest = async (request: FastifyRequest, reply: FastifyReply) => {
    door.open(request, reply)
  }
  app.post('/v1/rank', { schema: rankSchema, onRequest, ...hooks }, async (request, reply) => {
    const parsed = timedParse(request, metrics, () => parseRank(request.body, limits, nowSec()))
    request.outcome.requests = 1
    const wanted = {
      ...{ model: parsed.model, userId: parsed.input.user.id },
      signal: clientOf(reply),
    }
    const answered = await inTurn(
      ...([request, parts, wanted] as const),
      (ranker) => askOf(ranker, parsed),
      (model, turn) => answer(request, model, parsed, turn),
    )
    return written(request, reply, answered)
  })

  app.post(
    '/v1/rank/batch',
    { schema: batchSchema, onRequest, ...hooks },
    async (request, reply) => {
      door.loaded()
      const signal = clientOf(reply)
      const leases: ModelLease[] = []
      try {
        const entries = timedParse(request, metrics, () =>
          parseBatch(request.body, limits).map((body) => {
            try {
              const parsed = parseRank(body, limits, nowSec())
              const model = models.lease(parsed.model, parsed.input.user.id)
              leases.push(model)
              const ask = { ...askOf(model.ranker, parsed), signal }
              return { kind: 'parsed', parsed, model, ask } as const
            } catch (error) {
              return { kind: 'refused', error } as const
            }
          }),
        )
        request.outcome.requests = entries.length
        const asks = entries.flatMap((entry) => (entry.kind === 'parsed' ? [entry.ask] : []))
        const admitted = door.admit(request, asks)
        const results = entries.map((entry) => {
          if (entry.kind === 'refused') return failure(request, entry.error)
          const { ask, parsed, model } = entry
          return admitted(ask, (turn) => answer(request, model, parsed, { ...turn, signal })).catch(
            (error) => failure(request, error),
          )
        })
        return written(request, reply, { results: await Promise.all(results) })
      } finally {
        for (const model of leases) model.done()
      }
    },
  )
}
