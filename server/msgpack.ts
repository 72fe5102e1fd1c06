import { DecodeError, decode, encode } from '@msgpack/msgpack'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { RankError } from '../model/errors.js'
import type { InBodyTurn } from './body.js'
import { isRecord } from './fault.js'
import { scanMsgpack } from './msgpack-scan.js'

export const MSGPACK = 'application/msgpack'
/** What clients call it beside the registered name. */
const NAMES = [MSGPACK, 'application/vnd.msgpack', 'application/x-msgpack']
const ID_BYTES = 8

declare module 'fastify' {
  interface FastifyRequest {
    /** Its item ids came packed: its answer's items go packed. */
    isPacked: boolean
  }
}

/**
 * Takes bodies of MessagePack too. Its `candidates`, also in a batch, may be binary: item ids as
 * little-endian unsigned 64-bit integers, whose decimal digits are the ids.
 */
export function addMsgpackParser(
  app: FastifyInstance,
  maxIds: number,
  inBodyTurn: InBodyTurn,
): void {
  const limits = { maxBinLength: maxIds * ID_BYTES, maxExtLength: 0 }
  app.decorateRequest('isPacked', false)
  app.addContentTypeParser<Buffer>(NAMES, { parseAs: 'buffer' }, (request, bytes, done) => {
    inBodyTurn(request, bytes.length, () => {
      const startMs = performance.now()
      let body: unknown
      try {
        scanMsgpack(bytes)
        body = decode(bytes, limits)
        const requests = isRecord(body) && Array.isArray(body.requests) ? body.requests : [body]
        // Every one, whatever the first says.
        request.isPacked = requests.map(unpack).some(Boolean)
      } catch (error) {
        return done(faultOf(error, bytes))
      } finally {
        request.outcome.parseMs = performance.now() - startMs
      }
      done(null, body)
    })
  })
}

/** Puts packed ids into place; false where there are none. */
function unpack(body: unknown): boolean {
  if (!isRecord(body) || !(body.candidates instanceof Uint8Array)) return false
  body.candidates = unpackIds(body.candidates)
  return true
}

/** An answer in MessagePack, which a client asks for by `accept`, or by posting MessagePack and no `accept`. */
export function wantsMsgpack({ headers }: FastifyRequest): boolean {
  const { accept = '*/*' } = headers
  const isOffered = (type: string | undefined) => NAMES.some((name) => type?.includes(name))
  return isOffered(accept) || (accept.trim() === '*/*' && isOffered(headers['content-type']))
}

export function toMsgpack(value: unknown): Buffer {
  const { buffer, byteOffset, byteLength } = encode(value, { ignoreUndefined: true })
  return Buffer.from(buffer, byteOffset, byteLength)
}

function unpackIds(bytes: Uint8Array): string[] {
  const { byteLength } = bytes
  if (byteLength % ID_BYTES !== 0) {
    throw new DecodeError(`packed ids must have a multiple of ${ID_BYTES} bytes, got ${byteLength}`)
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, byteLength)
  return Array.from({ length: byteLength / ID_BYTES }, (_, i) =>
    String(view.getBigUint64(i * ID_BYTES, true)),
  )
}

function faultOf(error: unknown, { byteLength }: Buffer): RankError {
  if (byteLength === 0) return invalid('body must be a MessagePack map, got nothing')
  return invalid(
    `body must be MessagePack: ${error instanceof Error ? error.message : 'malformed'}`,
  )
}

function invalid(message: string): RankError {
  return new RankError('INVALID_REQUEST', message)
}
