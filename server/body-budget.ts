import type { FastifyReply, FastifyRequest } from 'fastify'

/** Memory for bodies, from before they are read until their requests are answered. */
export type BodyBudget = {
  /** Why there is no room for the request's body; else its bytes are taken until the reply is over. */
  reserve(
    request: FastifyRequest,
    reply: FastifyReply,
  ): { readonly message: string; readonly retryAfterMs: number } | undefined
  /** The body is read: from now on it counts as long as it is. */
  settle(request: FastifyRequest): void
}

const RETRY_MS = 1000

/** Counts by Content-Length; a body that does not say its length counts as the longest until it is read. */
export function createBodyBudget(maxBytes: number): BodyBudget {
  const reserved = new WeakMap<FastifyRequest, number>()
  let total = 0
  const set = (request: FastifyRequest, bytes: number) => {
    total += bytes - (reserved.get(request) ?? 0)
    reserved.set(request, bytes)
  }
  const release = (request: FastifyRequest) => {
    total -= reserved.get(request) ?? 0
    reserved.delete(request)
  }
  return {
    reserve(request, reply) {
      const { bodyLimit } = request.routeOptions
      const length = Number(request.headers['content-length'])
      // What is longer than the limit is refused without being read.
      const bytes = Number.isFinite(length) ? Math.min(length, bodyLimit) : bodyLimit
      if (total + bytes > maxBytes) {
        const message = `bodies may take ${maxBytes} bytes at once, got ${bytes} more to ${total}`
        return { message, retryAfterMs: RETRY_MS }
      }
      set(request, bytes)
      reply.raw.once('close', () => release(request))
      return undefined
    },
    settle(request) {
      const { bodyBytes } = request.outcome
      // Its client may have left meanwhile.
      if (bodyBytes !== undefined && reserved.has(request)) set(request, bodyBytes)
    },
  }
}
