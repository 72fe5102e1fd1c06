import { isUtf8 } from 'node:buffer'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { RankError } from '../model/errors.js'

/** Does `task` when it is the turn of a request's body, which has come. */
export type InBodyTurn = (request: FastifyRequest, bytes: number, task: () => void) => void

/**
 * Takes bodies of type application/json and no other; Fastify answers the rest with 415. Its own
 * parser also refuses `__proto__` keys. This adds the reason to its bare "not valid JSON", and notes
 * the time that parsing took.
 */
export function addJsonParser(app: FastifyInstance, inBodyTurn: InBodyTurn): void {
  const parse = app.getDefaultJsonParser('error', 'error')
  app.removeAllContentTypeParsers()
  app.addContentTypeParser<Buffer>(
    'application/json',
    { parseAs: 'buffer' },
    (request, bytes, done) => {
      request.outcome.bodyBytes = bytes.length
      inBodyTurn(request, bytes.length, () => {
        const startMs = performance.now()
        // A replacement character would make two different ids the same one.
        if (!isUtf8(bytes)) return done(invalid('body must be UTF-8'))
        const text = bytes.toString('utf8')
        void parse(request, text, (error, body) => {
          request.outcome.parseMs = performance.now() - startMs
          if (error) done(invalid(faultOf(text)))
          else done(null, body)
        })
      })
    },
  )
}

/** Why the parser refused this text; only a text without a syntax error gets as far as the keys. */
function faultOf(text: string): string {
  if (text === '') return 'body must be a JSON object, got nothing'
  try {
    JSON.parse(text.replace(/^\uFEFF/, ''))
    return 'body must not have the keys "__proto__" or "constructor": {"prototype": …}'
  } catch (error) {
    return `body must be JSON: ${error instanceof Error ? error.message : 'malformed'}`
  }
}

function invalid(message: string): RankError {
  return new RankError('INVALID_REQUEST', message)
}
