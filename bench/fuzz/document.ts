import Schema from 'typebox/schema'
import { isRecord } from '../../server/fault.js'

/** A JSON Schema as it stands in an OpenAPI document. */
export type Json = { readonly [key: string]: unknown }

export type Operation = {
  readonly method: string
  /** `/v1/users/{id}` */
  readonly path: string
  /** Undefined for routes without a body. */
  readonly body: Json | undefined
  /** A body that the document shows; undefined = none. */
  readonly example: unknown
  /** The fault of a body by status; undefined = none. A status that is not in here is not documented. */
  readonly answers: ReadonlyMap<number, (body: unknown) => string | undefined>
}

const METHODS = ['get', 'post', 'put', 'patch', 'delete']
const MAX_REF_DEPTH = 20

/** The operations of an OpenAPI document, every `$ref` replaced by what it names. */
export function operationsOf(document: Json): readonly Operation[] {
  return Object.entries(record(document.paths)).flatMap(([path, item]) =>
    METHODS.flatMap((method) => {
      const operation = record(item)[method]
      return operation === undefined ? [] : [operationOf(document, method, path, record(operation))]
    }),
  )
}

function operationOf(document: Json, method: string, path: string, operation: Json): Operation {
  const answers = Object.entries(record(operation.responses)).map(([status, answer]) => {
    const schema = schemaOf(record(answer))
    return [Number(status), checker(schema && resolve(document, schema))] as const
  })
  const content = record(record(operation.requestBody).content)['application/json']
  const body = schemaOf(record(operation.requestBody))
  const resolved = body && resolve(document, body)
  return {
    method: method.toUpperCase(),
    path,
    body: resolved,
    example: record(content).example ?? listOf(resolved?.examples)[0],
    answers: new Map(answers),
  }
}

/** The schema of `application/json` in a request body or an answer. */
function schemaOf({ content }: Json): Json | undefined {
  const schema = record(record(content)['application/json']).schema
  return schema === undefined ? undefined : record(schema)
}

function checker(schema: Json | undefined): (body: unknown) => string | undefined {
  if (schema === undefined) return () => undefined
  const compiled = Schema.Compile(schema)
  return (body) => {
    if (compiled.Check(body)) return undefined
    const [, [first]] = compiled.Errors(body)
    return `${first?.instancePath} ${first?.message}`
  }
}

function resolve(document: Json, schema: Json, depth = 0): Json {
  if (depth > MAX_REF_DEPTH) throw new Error('schemas must not refer to themselves')
  const { $ref } = schema
  if (typeof $ref === 'string') return resolve(document, lookUp(document, $ref), depth + 1)
  const into = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(into)
    return isRecord(value) ? resolve(document, value, depth + 1) : value
  }
  return Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, into(value)]))
}

function lookUp(document: Json, $ref: string): Json {
  const steps = $ref.replace(/^#\//, '').split('/')
  return record(steps.reduce<unknown>((at, step) => record(at)[step], document))
}

function listOf(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : []
}

/** What is no object is one without anything in it. */
export function record(value: unknown): Json {
  return isRecord(value) ? value : {}
}
