import type {
  FastifyInstance,
  FastifyReply,
  FastifyRequest,
  onSendHookHandler,
  preSerializationHookHandler,
} from 'fastify'
import Type from 'typebox'
import type { Ranker } from '../falcon/types.js'
import { modelId, toAnswer } from './answer.js'
import { ref, refusals } from './docs.js'
import { clientOf, type Door } from './door.js'
import { isFault, problemOf } from './errors.js'
import type { Metrics } from './metrics.js'
import { type Limits, type Parsed, parseBatch, parseRank } from './parse.js'
import { rankOnce } from './rank.js'
import { tracedRanking } from './tracing.js'

export type RankRoutes = {
  readonly door: Door
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
  const { door, limits, metrics, nowSec } = parts

  /** Runs `parse`, adding its time to that of the JSON. */
  function timed<T>({ outcome, trace }: FastifyRequest, parse: () => T): T {
    const startMs = performance.now()
    try {
      return parse()
    } finally {
      const endMs = performance.now()
      outcome.parseMs += endMs - startMs
      metrics.stage('parse', outcome.parseMs, trace?.exemplar)
      trace?.onStep?.('parse', endMs - outcome.parseMs, endMs, {})
    }
  }

  async function answer(
    { outcome, trace }: FastifyRequest,
    ready: Ranker,
    parsed: Parsed,
    signal: AbortSignal,
  ) {
    const { result, retries } = await tracedRanking(trace, (onStep) =>
      rankOnce(ready, parsed, signal, onStep),
    )
    metrics.ranked(result, retries, trace?.exemplar)
    outcome.candidates += result.candidates
    outcome.historyTokens += result.historyTokens
    outcome.kv = outcome.requests === 1 ? result.kv.state : undefined
    const run = parsed.explain ? { parseMs: outcome.parseMs, retries } : undefined
    return toAnswer(modelId(ready.model), result, run)
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
  const onRequest = async (_: FastifyRequest, reply: FastifyReply) => {
    door.open(reply, 1)
  }
  // The serializer does not know whose answer it writes: these two are called right before and after.
  const preSerialization: preSerializationHookHandler = ({ outcome }, _, payload, done) => {
    outcome.serializeStartMs = performance.now()
    done(null, payload)
  }
  const onSend: onSendHookHandler = ({ outcome, trace }, { statusCode }, payload, done) => {
    const { serializeStartMs } = outcome
    if (statusCode === 200 && serializeStartMs !== undefined) {
      const endMs = performance.now()
      metrics.stage('serialize', endMs - serializeStartMs, trace?.exemplar)
      trace?.onStep?.('serialize', serializeStartMs, endMs, {})
    }
    done(null, payload)
  }

  app.post(
    '/v1/rank',
    { schema: rankSchema, onRequest, preSerialization, onSend },
    async (request, reply) => {
      const parsed = timed(request, () => parseRank(request.body, limits, nowSec()))
      request.outcome.requests = 1
      return door.admit(reply, 1, (ready) => answer(request, ready, parsed, clientOf(reply)))
    },
  )

  app.post(
    '/v1/rank/batch',
    { schema: batchSchema, onRequest, preSerialization, onSend },
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
      return door.admit(reply, entries.length, async (ready) => {
        const signal = clientOf(reply)
        const results = entries.map(async (entry) => {
          if (entry.kind === 'refused') return failure(request, entry.error)
          return answer(request, ready, entry.parsed, signal).catch((error) =>
            failure(request, error),
          )
        })
        return { results: await Promise.all(results) }
      })
    },
  )
}
