import type {
  FastifyReply,
  FastifyRequest,
  onSendHookHandler,
  preSerializationHookHandler,
} from 'fastify'
import type { Metrics } from './metrics.js'
import { MSGPACK, toMsgpack, wantsMsgpack } from './msgpack.js'

/** How routes that rank or retrieve write their answers, and measure that. */
export function createSerializing(metrics: Pick<Metrics, 'stage'>) {
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
  return {
    hooks: { preSerialization, onSend },

    /** In the format that the client asks for. */
    written(request: FastifyRequest, reply: FastifyReply, body: object): object {
      if (!wantsMsgpack(request)) return body
      request.outcome.serializeStartMs = performance.now()
      reply.type(MSGPACK)
      return toMsgpack(body)
    },
  }
}
