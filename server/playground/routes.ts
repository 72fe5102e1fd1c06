import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { type Asset, asset, readAssets } from './assets.js'
import { openSamples, type Samples } from './samples.js'

/**
 * The page runs its own modules and talks to this server, nothing else. With trusted types no script
 * can insert HTML at all, so nothing of an answer ever becomes markup.
 */
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
].join('; ')

const HEADERS = {
  'content-security-policy': POLICY,
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  // Names carry no hash: a browser must ask, and gets 304 while the validator holds.
  'cache-control': 'no-cache',
}

const hidden = { schema: { hide: true } }

/**
 * Serves the playground at / and its files under /playground/; sample users only while the model
 * that they belong to is served (`servedModel`, undefined while loading).
 */
export function addPlayground(
  app: FastifyInstance,
  servedModel: () => string | undefined,
  samples: Samples | undefined = openSamples(),
): void {
  const assets = readAssets()
  const usable = () => (samples?.model === servedModel() ? samples : undefined)

  app.get('/', hidden, (request, reply) => send(request, reply, assets.get('index.html')))
  app.get<{ Params: { file: string } }>('/playground/:file', hidden, (request, reply) =>
    send(request, reply, assets.get(request.params.file)),
  )
  app.get('/playground/samples', hidden, async (request, reply) => {
    return send(request, reply, json({ samples: (await usable()?.list()) ?? [] }))
  })
  app.get<{ Params: { name: string } }>(
    '/playground/samples/:name',
    hidden,
    async (request, reply) => {
      const sample = await usable()?.read(request.params.name)
      return send(request, reply, sample && json(sample))
    },
  )
}

function json(value: unknown): Asset {
  return asset('application/json; charset=utf-8', Buffer.from(JSON.stringify(value)))
}

function send(request: FastifyRequest, reply: FastifyReply, found: Asset | undefined) {
  if (found === undefined) return reply.callNotFound()
  reply.headers({ ...HEADERS, etag: found.etag })
  const known = request.headers['if-none-match']?.split(/\s*,\s*/) ?? []
  const isKnown = known.some((etag) => etag.replace(/^W\//, '') === found.etag || etag === '*')
  return isKnown ? reply.code(304).send() : reply.type(found.type).send(found.body)
}
