import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { Ranker, RetrieveResult } from '../falcon/types.js'
import { show } from '../model/check.js'
import { RankError } from '../model/errors.js'
import type { HistoryEvent, RetrieveInput } from '../model/request.js'
import { inAllFormats, refusals } from './docs.js'
import { type Ask, clientOf, HEADERS, type Turn } from './door.js'
import type { ModelSource } from './models/source.js'
import { idOf, type ModelLease } from './models/version.js'
import { type Parsed, type ParsedRetrieve, parseRetrieve } from './parse.js'
import { rankCounted, askOf as rankingAsk, retried } from './rank.js'
import type { RankRoutes } from './rank-routes.js'
import { type RankedAfter, toRetrieveAnswer } from './retrieve-answer.js'
import { createSerializing } from './serialize.js'
import { timedParse } from './timed-parse.js'
import { inTurn } from './turn.js'

export type RetrieveRoute = Omit<RankRoutes, 'shadows'>

const PLAIN = 'As in JSON.'

const schema = {
  tags: ['retrieval'],
  summary: 'The next items for one user',
  description:
    'Of the model’s candidate list the items that are closest to the user, exactly. With `rank` another model ranks them, in the same turn.',
  headers: HEADERS,
  body: inAllFormats('RetrieveRequest', PLAIN),
  response: {
    200: { description: 'The items.', ...inAllFormats('RetrieveAnswer', PLAIN) },
    ...refusals(400, 404, 413, 415, 422, 429, 500, 503, 504),
  },
}

/** A turn whose client can leave. */
type OwnTurn = Turn & { readonly signal: AbortSignal }

/** Adds POST /v1/retrieve. */
export function addRetrieveRoute(app: FastifyInstance, parts: RetrieveRoute): void {
  const { door, models, limits, metrics, nowSec } = parts
  const serializing = createSerializing(metrics)

  async function retrieveCounted(
    { trace, outcome }: FastifyRequest,
    { id, ranker }: ModelLease,
    { input, options, rank, mainHistories }: ParsedRetrieve,
    turn: OwnTurn,
  ) {
    const asked = rank === undefined ? input : itemsOnly(input)
    const onStep = trace?.onStep
    const { result, retries } = await retried(
      { ...options, ...turn, ...(onStep !== undefined && { onStep }) },
      mainHistories,
      (own) => ranker.retrieve(asked, own),
    )
    metrics.retrieved(id, result, retries, trace?.exemplar)
    outcome.historyTokens += result.historyTokens
    outcome.kv = result.kv.state
    return { result, retries }
  }

  /** Of the retrieved items, with what is left of the turn. */
  async function rankFound(
    request: FastifyRequest,
    model: ModelLease,
    parsed: ParsedRetrieve,
    found: RetrieveResult,
    turn: OwnTurn,
  ): Promise<RankedAfter | undefined> {
    if (found.items.length === 0) return undefined
    const waitedMs = turn.waitedMs + found.timings.totalMs
    const ranking = rankingOf(
      parsed,
      found.items.map(({ item }) => ({ item })),
    )
    const { result } = await rankCounted(request, metrics, model, ranking, { ...turn, waitedMs })
    return { model: model.id, result }
  }

  app.post(
    '/v1/retrieve',
    {
      schema,
      onRequest: async (request: FastifyRequest, reply: FastifyReply) => {
        door.open(request, reply)
      },
      ...serializing.hooks,
    },
    async (request, reply) => {
      const { outcome } = request
      const parsed = timedParse(request, metrics, () =>
        parseRetrieve(request.body, limits, nowSec()),
      )
      outcome.requests = 1
      const { input, rank } = parsed
      const userId = input.user.id
      const ranker = rank && within('/rank', () => models.lease(rank.model, userId))
      try {
        const wanted = { model: parsed.model, userId, signal: clientOf(reply) }
        const answer = await inTurn(
          ...([request, parts, wanted] as const),
          (retriever) => {
            checkHead(retriever, models)
            return askOf(retriever, ranker?.ranker, parsed)
          },
          async (model, turn) => {
            const { result, retries } = await retrieveCounted(request, model, parsed, turn)
            const ranked = ranker && (await rankFound(request, ranker, parsed, result, turn))
            const run = parsed.explain ? { parseMs: outcome.parseMs, retries } : undefined
            return toRetrieveAnswer(model.id, result, ranked, turn.waitedMs, run)
          },
        )
        return serializing.written(request, reply, answer)
      } finally {
        ranker?.done()
      }
    },
  )
}

/** @throws {RankError} INVALID_REQUEST naming the models that have one */
function checkHead({ model }: Ranker, models: ModelSource): void {
  if (model.retrieval !== undefined) return
  const others = models.loaded().filter((other) => other.ranker.model.retrieval !== undefined)
  const expected =
    others.length === 0 ? 'none that is loaded' : others.map((m) => show(m.id)).join(' or ')
  const message = `must be a model with a retrieval head, ${expected}, got ${show(idOf(model))}, which ranks given candidates`
  throw new RankError('INVALID_REQUEST', message, { path: '/model' })
}

/** What the door is asked for both. @throws {RankError} INVALID_REQUEST for a weight of no task */
function askOf(
  retriever: Ranker,
  ranker: Ranker | undefined,
  parsed: ParsedRetrieve,
): Omit<Ask, 'signal'> {
  const { input, options } = parsed
  const { deadlineMs, topK } = options
  const retrieveMs = retriever.predictRetrieveMs(input, options)
  if (ranker === undefined) return { workMs: retrieveMs, deadlineMs }
  const count = Math.min(topK, retriever.model.retrieval?.items ?? topK)
  const ranking = rankingOf(parsed, Array(count).fill({ item: '' }))
  const { workMs: rankMs } = within('/rank', () => rankingAsk(ranker, ranking))
  const workMs = retrieveMs === undefined || rankMs === undefined ? undefined : retrieveMs + rankMs
  return { workMs, deadlineMs }
}

/** What the ranking model is asked. */
function rankingOf(
  { input, options, rank, mainHistories }: ParsedRetrieve,
  candidates: Parsed['input']['candidates'],
): Parsed {
  const { topK: _, ...rest } = options
  const { topK, weights } = rank ?? {}
  return {
    input: { ...input, candidates },
    options: { ...rest, ...(topK && { topK }), ...(weights && { weights }) },
    explain: false,
    model: rank?.model,
    mainHistories,
  }
}

/** The request without what only the model that ranks can know. */
function itemsOnly(input: RetrieveInput): RetrieveInput {
  const plain = ({ item, time }: HistoryEvent) => ({ item, time })
  return {
    ...input,
    user: { id: input.user.id },
    histories: input.histories.map((history) => history.map(plain)),
    series: {},
  }
}

/** Does `work`; a fault of it is at `path` in the request. */
function within<T>(path: string, work: () => T): T {
  try {
    return work()
  } catch (error) {
    if (!(error instanceof RankError) || error.path === undefined) throw error
    throw new RankError(error.code, error.message, { path: `${path}${error.path}`, cause: error })
  }
}
