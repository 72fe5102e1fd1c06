import { timingSafeEqual } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import { TLSSocket } from 'node:tls'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { RankError } from '../model/errors.js'
import type { Problem } from './errors.js'
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

export type Auth = {
  /**
   * Puts `request.apiKey` on each request and refuses, before the body is read, who may not: 401
   * UNAUTHENTICATED, 403 FORBIDDEN, 429 RATE_LIMITED. Comes before the routes and their plugins.
   */
  addTo(app: FastifyInstance): void
  /** Who may rank; undefined for all others, who are told why on the long way. */
  rankingKeyOf(request: IncomingMessage): ApiKey | undefined
  /** The request goes the long way with the key that `rankingKeyOf` told: it is not looked for again. */
  remember(request: IncomingMessage, key: ApiKey): void
  /** Takes one of a key's requests per second. 0 when there was one, else the seconds until there is. */
  waitSec(key: ApiKey): number
  /** What a key is told that has to wait for that. */
  rateLimited(key: Pick<ApiKey, 'requestsPerSec'>): Problem & { readonly code: 'RATE_LIMITED' }
}

/** Who may call what, by API keys and certificates. */
export function createAuth({ keys, nowMs, needsCertificate }: AuthOptions): Auth {
  const rates = createRateLimits(nowMs)
  const remembered = new WeakMap<IncomingMessage, ApiKey>()
  const auth: Auth = {
    addTo(app) {
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
        const key = remembered.get(request.raw) ?? authenticate(request, reply, keys())
        request.apiKey = key
        request.outcome.key = key.name
        if (access !== undefined && !key.scopes.includes(access)) {
          const has = key.scopes.join(', ')
          throw new RankError('FORBIDDEN', `needs an API key of scope ${access}, got one of ${has}`)
        }
        const waitSec = auth.waitSec(key)
        if (waitSec === 0) return
        reply.header('retry-after', Math.ceil(waitSec))
        const { code, message } = auth.rateLimited(key)
        throw new RankError(code, message)
      })
    },
    rankingKeyOf(request) {
      if (needsCertificate && certificateFault(request) !== undefined) return undefined
      if (keys === undefined) return ANYONE
      const given = givenBy(request)
      const key = given === undefined ? undefined : find(keys(), given)
      return key?.scopes.includes('rank') ? key : undefined
    },
    remember(request, key) {
      if (keys !== undefined) remembered.set(request, key)
    },
    waitSec: ({ name, requestsPerSec }) =>
      requestsPerSec === undefined ? 0 : rates.take(name, requestsPerSec),
    rateLimited: ({ requestsPerSec }) => ({
      code: 'RATE_LIMITED',
      message: `this API key has ${requestsPerSec} requests per second, got more`,
    }),
  }
  return auth
}

/** The secret of a request's key. */
function givenBy({ headers }: Pick<IncomingMessage, 'headers'>): string | undefined {
  const given = headers['x-api-key'] ?? /^Bearer +(\S+)$/i.exec(headers.authorization ?? '')?.[1]
  return typeof given === 'string' ? given : undefined
}

/** @throws {RankError} UNAUTHENTICATED, which does not say whether such a key was ever there */
function authenticate(
  request: FastifyRequest,
  reply: FastifyReply,
  keys: readonly StoredKey[],
): ApiKey {
  const given = givenBy(request)
  const found = given === undefined ? undefined : find(keys, given)
  if (found !== undefined) return found
  reply.header('www-authenticate', 'Bearer')
  const expected = 'needs an API key as "Authorization: Bearer …" or "x-api-key: …"'
  const got = given === undefined ? 'none' : 'one that is not known'
  throw new RankError('UNAUTHENTICATED', `${expected}, got ${got}`)
}

/** @throws {RankError} UNAUTHENTICATED */
function checkCertificate({ raw }: FastifyRequest): void {
  const fault = certificateFault(raw)
  if (fault === undefined) return
  throw new RankError('UNAUTHENTICATED', `needs a client certificate of ours, got ${fault}`)
}

function certificateFault({ socket }: IncomingMessage): string | undefined {
  if (!(socket instanceof TLSSocket)) return 'no TLS'
  return socket.authorized ? undefined : String(socket.authorizationError)
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
