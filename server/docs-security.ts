import type { FastifySchema, RouteOptions } from 'fastify'

/** How a key comes: components.securitySchemes of the OpenAPI document. */
export const SECURITY_SCHEMES = {
  bearer: { type: 'http', scheme: 'bearer' },
  apiKey: { type: 'apiKey', in: 'header', name: 'x-api-key' },
} as const

/** Either way will do. */
const EITHER = [{ bearer: [] }, { apiKey: [] }]

/** The schema of a route with what keys add: how they come, and how they are refused. */
export function guarded(
  schema: FastifySchema,
  { config }: RouteOptions,
  refusals: { readonly [status: number]: unknown },
): FastifySchema {
  const access = config?.access
  if (schema === undefined || access === undefined || access === 'open' || access === 'probe') {
    return schema
  }
  const answers: unknown = schema.response
  return {
    ...schema,
    description: [schema.description, `Scope of the API key: ${access}.`].filter(Boolean).join(' '),
    security: EITHER,
    response: { ...refusals, ...(typeof answers === 'object' ? answers : { 200: OK }) },
  }
}

const OK = { description: 'As the summary says.' }
