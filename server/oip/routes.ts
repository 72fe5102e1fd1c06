import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import Type from 'typebox'
import { show } from '../../model/check.js'
import { RankError } from '../../model/errors.js'
import type { InBodyTurn } from '../body.js'
import { clientOf, HEADERS } from '../door.js'
import { refuse } from '../errors.js'
import { parseRank } from '../parse.js'
import { askOf, rankCounted } from '../rank.js'
import type { RankRoutes } from '../rank-routes.js'
import { timedParse } from '../timed-parse.js'
import { inTurn } from '../turn.js'
import { checkOutputs, INPUTS, outputsOf, parseInfer, toReply } from './infer.js'
import { InferAnswer, InferRequest, ModelMetadata } from './schema.js'

export type OipRoutes = RankRoutes & {
  readonly isReady: () => boolean
  readonly inBodyTurn: InBodyTurn
}

const HEADER_LENGTH = 'inference-header-content-length'
const tags = ['inference protocol']
const Failure = Type.Object({ error: Type.String() }, { description: 'What went wrong.' })
const Ready = Type.Object({ name: Type.String(), ready: Type.Boolean() })
const refused = { 404: Failure, 503: Failure }
const params = Type.Object({
  name: Type.String({ description: 'Name of the model.' }),
  version: Type.Optional(
    Type.String({ description: 'Its version; absent = the one that serves.' }),
  ),
})

/**
 * The Open Inference Protocol v2 for clients that speak it: health, metadata and infer, one ranking per
 * request, with JSON and binary tensors.
 */
export function addOipRoutes(app: FastifyInstance, parts: OipRoutes): void {
  const { inBodyTurn } = parts
  void app.register(async (scope) => {
    scope.removeAllContentTypeParsers()
    // Triton's own client names no type, and calls JSON with tensors behind it octets.
    scope.addContentTypeParser('*', { parseAs: 'buffer' }, (request, bytes, done) => {
      inBodyTurn(request, bytes.length, () => done(null, bytes))
    })
    // All that the protocol says of errors; the status is that of /v1/rank.
    scope.setErrorHandler((error, request, reply) => {
      const { code, message, path } = refuse(error, request, reply)
      return reply.send({ error: `${code}: ${path === undefined ? '' : `${path} `}${message}` })
    })
    addRoutes(scope, parts)
  })
}

function addRoutes(scope: FastifyInstance, parts: OipRoutes): void {
  const { door, models, limits, metrics, nowSec, isReady } = parts

  scope.get('/v2', { schema: { tags, summary: 'The server' } }, async () => ({
    name: 'peregrine',
    version: 'v2',
    extensions: ['binary_tensor_data'],
  }))
  scope.get('/v2/health/live', { schema: { tags, summary: 'The process lives' } }, async () => ({
    live: true,
  }))
  scope.get(
    '/v2/health/ready',
    { schema: { tags, summary: 'The model is warm' } },
    async (_, reply) => {
      const ready = isReady()
      return reply.code(ready ? 200 : 503).send({ ready })
    },
  )
  for (const url of ['/v2/models/:name', '/v2/models/:name/versions/:version']) {
    scope.get(
      url,
      {
        schema: {
          ...{ tags, summary: 'What a model takes and gives', params },
          response: { 200: ModelMetadata, ...refused },
        },
      },
      async ({ params: asked }) => {
        const lease = models.lease(nameOf(asked), '')
        lease.done()
        const { name } = lease
        const loaded = models.loaded().filter(({ ranker }) => ranker.model.name === name)
        return {
          name,
          versions: loaded.map(({ ranker }) => ranker.model.version),
          platform: 'peregrine_hstu',
          inputs: INPUTS,
          outputs: outputsOf(lease.ranker.model),
        }
      },
    )
    scope.get(
      `${url}/ready`,
      {
        schema: {
          tags,
          summary: 'The model is warm',
          params,
          response: { 200: Ready, 404: Failure, 503: Type.Union([Ready, Failure]) },
        },
      },
      async ({ params: asked }, reply) => {
        const { name, done } = models.lease(nameOf(asked), '')
        done()
        const ready = isReady()
        return reply.code(ready ? 200 : 503).send({ name, ready })
      },
    )
    scope.post(
      `${url}/infer`,
      {
        schema: {
          ...{ tags, summary: 'Score candidates as tensors', params, headers: HEADERS },
          body: InferRequest,
          description: DESCRIPTION,
          response: {
            200: InferAnswer,
            ...Object.fromEntries(
              [400, 401, 403, 404, 413, 415, 422, 429, 500, 503, 504].map((s) => [s, Failure]),
            ),
          },
        },
        onRequest: async (request: FastifyRequest, reply: FastifyReply) => {
          door.open(request, reply)
        },
      },
      async (request, reply) => {
        const { infer, parsed } = timedParse(request, metrics, () => {
          const infer = parseInfer(bytesOf(request), headerLength(request))
          return { infer, parsed: parseRank(infer.body, limits, nowSec()) }
        })
        request.outcome.requests = 1
        const wanted = {
          ...{ model: nameOf(request.params), userId: parsed.input.user.id },
          signal: clientOf(reply),
        }
        const { body, jsonBytes } = await inTurn(
          ...([request, parts, wanted] as const),
          (ranker) => {
            checkOutputs(ranker.model, infer)
            return askOf(ranker, parsed)
          },
          async (model, turn) => {
            const { result } = await rankCounted(request, metrics, model, parsed, turn)
            return toReply(model.ranker.model, result, infer)
          },
        )
        if (jsonBytes === undefined) return reply.type('application/json').send(body)
        return reply.type('application/octet-stream').header(HEADER_LENGTH, jsonBytes).send(body)
      },
    )
  }
}

const DESCRIPTION = `Inputs: \`user_id\` and \`candidates\` (BYTES, or integers), \`history_items\`,
\`history_times\` (INT64, seconds) and \`history_actions\` (BYTES, a JSON array of names each), \`time\`, and
\`request\`: JSON with anything else of POST /v1/rank. Outputs: \`score\` and one per task, FP32, in the order
of the candidates. With the header Inference-Header-Content-Length tensors stand behind the JSON.`

/** The model that a URL names, as requests name it. */
function nameOf(params: unknown): string {
  const { name, version } = params as { readonly name: string; readonly version?: string }
  return version === undefined ? name : `${name}@${version}`
}

function bytesOf({ body }: FastifyRequest): Buffer {
  return Buffer.isBuffer(body) ? body : Buffer.alloc(0)
}

/** @throws {RankError} INVALID_REQUEST */
function headerLength({ headers }: FastifyRequest): number | undefined {
  const text = headers[HEADER_LENGTH]
  if (text === undefined) return undefined
  const length = Number(text)
  if (/^\d{1,15}$/.test(String(text))) return length
  const message = `Inference-Header-Content-Length must be a number of bytes, got ${show(text)}`
  throw new RankError('INVALID_REQUEST', message)
}
