import { timingSafeEqual } from 'node:crypto'
import { TLSSocket } from 'node:tls'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { RankError } from '../model/errors.js'
import { digestOf, SCOPES, type StoredKey } from './key-file.js'
import { createRateLimits } from './rate.js'
import { type Access, accessOf } from './scopes.js'

/** Who asks: a key of the key file without its digest. */
export type ApiKey = Omit<StoredKey, 'digest'>

declare module 'fastify' {
  interface FastifyRequest {
    /** Who asks: a key of the key file; `ANYONE` where there is none, and on open routes. */
    apiKey: ApiKey
  }
  interface FastifyContextConfig {
    /** What the route asks of a key; by scopes.ts where it does not say. */
    access?: Access
  }
}

/** Everybody, where no keys are asked for; no key of a file can have that name. */
export const ANYONE: ApiKey = { name: '-', scopes: SCOPES, share: 1 }

export type AuthOptions = {
  /** The keys of now; undefined = none are asked for. */
  readonly keys: (() => readonly StoredKey[]) | undefined
  readonly nowMs: (() => number) | undefined
  /** Whether clients shall have a certificate that the listener's authority signed. */
  readonly needsCertificate: boolean
}

/**
 * Puts `request.apiKey` on each request and refuses, before the body is read, who may not: 401
 * UNAUTHENTICATED, 403 FORBIDDEN, 429 RATE_LIMITED. Comes before the routes and their plugins.
 */
export function addAuth(
  app: FastifyInstance,
  { keys, nowMs, needsCertificate }: AuthOptions,
): void {
  const rates = createRateLimits(nowMs)
  app.decorateRequest('apiKey')
  app.addHook('onRoute', (route) => {
    const [method = ''] = [route.method].flat()
    route.config = { access: accessOf(method, route.url), ...route.config }
  })
  app.addHook('onRequest', async (request, reply) => {
    request.apiKey = ANYONE
    // A wrong path is answered to those with any key: its body would be parsed first.
    const access = request.is404 ? undefined : (request.routeOptions.config.access ?? 'admin')
    if (access === 'probe') return
    if (needsCertificate) checkCertificate(request)
    if (keys === undefined || access === 'open') return
    const key = authenticate(request, reply, keys())
    request.apiKey = key
    request.outcome.key = key.name
    if (access !== undefined && !key.scopes.includes(access)) {
      const has = key.scopes.join(', ')
      throw new RankError('FORBIDDEN', `needs an API key of scope ${access}, got one of ${has}`)
    }
    if (key.requestsPerSec === undefined) return
    const waitSec = rates.take(key.name, key.requestsPerSec)
    if (waitSec === 0) return
    reply.header('retry-after', Math.ceil(waitSec))
    const message = `this API key has ${key.requestsPerSec} requests per second, got more`
    throw new RankError('RATE_LIMITED', message)
  })
}

/** @throws {RankError} UNAUTHENTICATED, which does not say whether such a key was ever there */
function authenticate(
  { headers }: FastifyRequest,
  reply: FastifyReply,
  keys: readonly StoredKey[],
): ApiKey {
  const given = headers['x-api-key'] ?? /^Bearer +(\S+)$/i.exec(headers.authorization ?? '')?.[1]
  const found = typeof given === 'string' ? find(keys, given) : undefined
  if (found !== undefined) return found
  reply.header('www-authenticate', 'Bearer')
  const expected = 'needs an API key as "Authorization: Bearer …" or "x-api-key: …"'
  const got = given === undefined ? 'none' : 'one that is not known'
  throw new RankError('UNAUTHENTICATED', `${expected}, got ${got}`)
}

/** @throws {RankError} UNAUTHENTICATED */
function checkCertificate({ raw: { socket } }: FastifyRequest): void {
  if (socket instanceof TLSSocket && socket.authorized) return
  const why = socket instanceof TLSSocket ? String(socket.authorizationError) : 'no TLS'
  throw new RankError('UNAUTHENTICATED', `needs a client certificate of ours, got ${why}`)
}

/** Compares with every key in constant time, so that the time says nothing about any. */
function find(keys: readonly StoredKey[], secret: string): StoredKey | undefined {
  const digest = digestOf(secret)
  let found: StoredKey | undefined
  for (const key of keys) {
    if (timingSafeEqual(key.digest, digest)) found = key
  }
  return found
}
