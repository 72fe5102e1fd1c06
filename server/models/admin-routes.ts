import { resolve } from 'node:path'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import Type from 'typebox'
import { Compile } from 'typebox/compile'
import { check, show } from '../../model/check.js'
import { RankError } from '../../model/errors.js'
import { ANYONE } from '../auth.js'
import { ref, refusals } from '../docs.js'
import { problemOf, STATUS } from '../errors.js'
import type { Models } from './registry.js'
import { CanaryRequest, LoadRequest, PromoteRequest, ShadowRequest } from './schema.js'
import { modelsView, modelView } from './view.js'

export type AdminRoutes = {
  readonly models: Models
  /** Where `POST /v1/admin/models` finds bundles by the names of their folders; none when absent. */
  readonly modelsDir?: string
  /** Others that it may load. */
  readonly bundles: readonly string[]
  /** Called after labels changed; resolves when they are kept. */
  readonly save: () => Promise<void>
}

const LOOPBACK = /^(127\.|::1$|::ffff:127\.)/

const name = Type.String({ description: 'Name of a model.' })
const params = Type.Object({ name })
const versionParams = Type.Object({ name, version: Type.String() })
const answers = { 200: ref('AdminModel'), ...refusals(400, 401, 403, 404, 409, 413, 415, 500) }

/**
 * Adds /v1/admin/models. Without API keys only clients on this machine may use it: whoever may load and
 * promote models decides what everybody gets.
 */
export function addAdminRoutes(app: FastifyInstance, parts: AdminRoutes): void {
  const { models, save } = parts
  const view = (model: string) => modelView(models, model, Date.now())
  const changed = async (model: string) => {
    await save()
    return view(model)
  }
  const onRequest = async ({ apiKey, socket }: FastifyRequest) => {
    if (apiKey.name !== ANYONE.name || LOOPBACK.test(socket.remoteAddress ?? '')) return
    const message = 'the admin API needs API keys (--api-keys-file) or a client on this machine'
    throw new RankError('FORBIDDEN', message)
  }
  const route = (summary: string, schema: object = {}) => ({
    onRequest,
    schema: { tags: ['admin'], summary, response: answers, ...schema },
  })
  const ofModel = (summary: string, schema: object = {}) => route(summary, { params, ...schema })

  app.get(
    '/v1/admin/models',
    route('List all models, with the states of their versions', {
      response: { 200: ref('AdminModelList'), ...refusals(401, 403, 500) },
    }),
    async () => modelsView(models, Date.now()),
  )

  app.post<{ Body: unknown }>(
    '/v1/admin/models',
    route('Load a bundle', {
      description:
        'It is verified and warmed beside the traffic. The first version of its name becomes stable; any other gets requests that ask for `name@version`, and the rest once it is promoted. A bundle that is refused changes nothing.',
      body: ref('LoadRequest'),
      response: { ...answers, 202: ref('AdminModel'), ...refusals(422) },
    }),
    async (request, reply) => {
      const { bundle, wait = false } = check(loadRequest, request.body, 'INVALID_REQUEST', 'body')
      const folder = folderOf(parts, bundle)
      try {
        const { version, ready } = models.load(folder)
        reply.header('location', `/v1/admin/models/${version.name}`)
        if (!wait) return await reply.code(202).send(view(version.name))
        await ready
        return view(version.name)
      } catch (error) {
        // Not the service's fault, but the bundle's.
        if (!(error instanceof RankError) || STATUS[error.code] !== 500) throw error
        request.outcome.code = error.code
        return reply.code(422).send(problemOf(error))
      }
    },
  )

  app.get<Params>('/v1/admin/models/:name', ofModel('Show a model'), async ({ params }) => {
    if (models.versions().every((version) => version.name !== params.name)) {
      throw new RankError('MODEL_NOT_FOUND', `no model ${show(params.name)}`)
    }
    return view(params.name)
  })

  app.post<Params>(
    '/v1/admin/models/:name/promote',
    ofModel('Make a version stable', {
      description:
        '`name@stable` is that version at once; who asks for `name` moves to it user by user within rampSec. The former one stays loaded for a rollback.',
      body: ref('PromoteRequest'),
    }),
    async ({ params, body }) => {
      const { version, rampSec } = check(promoteRequest, body, 'INVALID_REQUEST', 'body')
      models.promote(params.name, version, rampSec === undefined ? undefined : 1000 * rampSec)
      return changed(params.name)
    },
  )

  app.post<Params>(
    '/v1/admin/models/:name/rollback',
    ofModel('Make the former version stable again, for everybody at once'),
    async ({ params }) => {
      models.rollback(params.name)
      return changed(params.name)
    },
  )

  app.put<Params>(
    '/v1/admin/models/:name/canary',
    ofModel('Give a share of the users another version', { body: ref('CanaryRequest') }),
    async ({ params, body }) => {
      const { version, weightPercent } = check(canaryRequest, body, 'INVALID_REQUEST', 'body')
      models.setCanary(params.name, version, weightPercent)
      return changed(params.name)
    },
  )
  app.delete<Params>(
    '/v1/admin/models/:name/canary',
    ofModel('Give everybody the stable version'),
    async ({ params }) => {
      models.clearCanary(params.name)
      return changed(params.name)
    },
  )

  app.put<Params>(
    '/v1/admin/models/:name/shadow',
    ofModel('Rank a share of the requests on another version too', {
      description:
        'After the answer, while nothing else needs the machine; `peregrine_shadow_difference` says how far the predictions differ.',
      body: ref('ShadowRequest'),
    }),
    async ({ params, body }) => {
      const { version, sharePercent } = check(shadowRequest, body, 'INVALID_REQUEST', 'body')
      models.setShadow(params.name, version, sharePercent)
      return changed(params.name)
    },
  )
  app.delete<Params>(
    '/v1/admin/models/:name/shadow',
    ofModel('Stop ranking on the shadow'),
    async ({ params }) => {
      models.clearShadow(params.name)
      return changed(params.name)
    },
  )

  app.delete<VersionParams>(
    '/v1/admin/models/:name/versions/:version',
    route('Unload a version', {
      description:
        'No request gets it any more; those under way end on it, then its memory is given back. With ?wait=true the answer comes then.',
      params: versionParams,
      querystring: Type.Object({ wait: Type.Optional(Type.Boolean()) }),
      response: { ...answers, 202: ref('AdminModel') },
    }),
    async ({ params, query }, reply) => {
      const { gone } = models.unload(params.name, params.version)
      await save()
      if (query.wait === 'true') await gone
      return reply.code(query.wait === 'true' ? 200 : 202).send(view(params.name))
    },
  )
}

type Params = { Params: { name: string } }
type VersionParams = {
  Params: { name: string; version: string }
  Querystring: { wait?: string }
}

const loadRequest = Compile(LoadRequest)
const promoteRequest = Compile(PromoteRequest)
const canaryRequest = Compile(CanaryRequest)
const shadowRequest = Compile(ShadowRequest)

/** @throws {RankError} INVALID_REQUEST for what is not served from here */
function folderOf({ modelsDir, bundles }: AdminRoutes, bundle: string): string {
  const isListed = bundles.some((each) => resolve(each) === resolve(bundle))
  if (isListed) return bundle
  if (modelsDir !== undefined && /^[\w.-]+$/.test(bundle) && !bundle.startsWith('.')) {
    return resolve(modelsDir, bundle)
  }
  const places = [
    ...(modelsDir === undefined ? [] : ['the name of a folder in --models-dir']),
    ...(bundles.length === 0 ? [] : ['one of --bundle']),
  ]
  const message = `bundle must be ${places.join(' or ')}, got ${show(bundle)}`
  throw new RankError('INVALID_REQUEST', message, { path: '/bundle' })
}
