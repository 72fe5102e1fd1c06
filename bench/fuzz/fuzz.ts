import { createRandom } from '../../model/random.js'
import type { Operation } from './document.js'
import { broken, changed } from './mutate.js'
import { anything, below, pick, type Random, sample, text, type Words } from './values.js'

export type FuzzRequest = {
  readonly method: string
  readonly url: string
  readonly headers: { readonly [name: string]: string }
  readonly payload?: Buffer
}

export type FuzzAnswer = {
  readonly status: number
  readonly headers: { readonly [name: string]: unknown }
  readonly body: string
  /** Nothing of it but its status, which it must have had. */
  readonly isLost?: boolean
}

export type FuzzFault = {
  /** The request again: the `index`th of the seed. */
  readonly index: number
  readonly request: FuzzRequest
  readonly status: number
  readonly why: string
}

export type FuzzResult = {
  /** Answers by `METHOD /path`, then by status. */
  readonly counts: ReadonlyMap<string, ReadonlyMap<number, number>>
  readonly faults: readonly FuzzFault[]
}

export type FuzzOptions = {
  readonly operations: readonly Operation[]
  readonly words: Words
  readonly send: (request: FuzzRequest) => Promise<FuzzAnswer>
  readonly count: number
  readonly seed: number
  readonly onAnswer?: () => void
}

/** Kinds of faults that are kept, one request of each. */
const MAX_FAULTS = 20
/** An error quotes what it got, but not all of it. */
const MAX_PROBLEM_CHARS = 4096
/** What a single client cannot make a sound server say. */
const NEVER = new Set([429, 500, 502, 503])

/** Sends `count` seeded requests, one at a time, and holds each answer to the document. */
export async function fuzz(options: FuzzOptions): Promise<FuzzResult> {
  const { operations, words, send, count, seed, onAnswer } = options
  const random = createRandom(seed)
  const counts = new Map<string, Map<number, number>>()
  const faults: FuzzFault[] = []
  const kinds = new Set<string>()
  const withBody = operations.filter(({ body }) => body !== undefined)
  for (let index = 0; index < count; index++) {
    const among = random() < 0.9 && withBody.length > 0 ? withBody : operations
    const operation = among[below(random, among.length)]
    if (operation === undefined) throw new Error('the document must have operations, got none')
    const request = requestOf(operation, random, words)
    const answer = await send(request)
    const name = `${operation.method} ${operation.path}`
    const statuses = counts.get(name) ?? new Map<number, number>()
    counts.set(name, statuses.set(answer.status, (statuses.get(answer.status) ?? 0) + 1))
    const why = faultOf(operation, answer)
    const kind = `${name} ${answer.status} ${why}`
    if (why !== undefined && kinds.size < MAX_FAULTS && !kinds.has(kind)) {
      kinds.add(kind)
      faults.push({ index, request, status: answer.status, why })
    }
    onAnswer?.()
  }
  return { counts, faults }
}

function requestOf(operation: Operation, random: Random, words: Words): FuzzRequest {
  const { method, path, body, example } = operation
  const url = path.replace(/\{.+?\}/g, (name) =>
    encodeURIComponent(parameter(random, words[name] ?? [])),
  )
  const query =
    random() < 0.05 ? `?${encodeURIComponent(wellFormed(text(random, 8)))}=${below(random, 9)}` : ''
  if (body === undefined) return { method, url: url + query, headers: {} }
  const headers = { 'content-type': 'application/json', ...oddHeaders(random) }
  const value = example !== undefined && random() < 0.5 ? example : sample(body, random, words)
  return { method, url: url + query, headers, payload: payloadOf(value, random) }
}

/** A good body, as it is or worse. */
function payloadOf(value: unknown, random: Random): Buffer {
  const at = random()
  if (at < 0.4) return Buffer.from(JSON.stringify(value))
  if (at < 0.55) return Buffer.from(JSON.stringify(changed(value, random)))
  if (at < 0.75) return Buffer.from(JSON.stringify(changed(changed(value, random), random)))
  if (at < 0.8) return Buffer.from(JSON.stringify(anything(random)))
  return broken(JSON.stringify(value), random)
}

/**
 * One of the words that are known, a user, or what no URL likes. No dots: clients
 * make `/a/./b` `/a/b`.
 */
function parameter(random: Random, known: readonly string[]): string {
  if (random() < 0.7) return known[below(random, known.length)] ?? `u${below(random, 20)}`
  const odd = wellFormed(text(random, pick(random, [1, 8, 255, 256, 257])))
  return pick(random, [odd.replaceAll('.', '-'), '__proto__', '%', 'a/b', '\0'])
}

/** Without lone surrogates, which no URL can have. */
function wellFormed(name: string): string {
  return Buffer.from(name).toString()
}

function oddHeaders(random: Random): { readonly [name: string]: string } {
  if (random() < 0.85) return {}
  return pick<{ readonly [name: string]: string }>(random, [
    { 'content-type': 'application/json; charset=utf-8' },
    { 'content-type': 'application/json; charset=utf-16' },
    { 'content-type': 'text/plain' },
    { 'content-type': 'application/octet-stream' },
    { 'content-type': 'multipart/form-data; boundary=x' },
    { 'content-type': '' },
    { 'content-type': 'application/json, text/html' },
    { 'content-encoding': 'gzip' },
    { 'idempotency-key': 'x'.repeat(pick(random, [1, 256, 257, 5000])) },
    { 'idempotency-key': `k${below(random, 5)}` },
    { 'x-request-id': 'x'.repeat(pick(random, [1, 128, 129])) },
    { accept: 'text/html' },
    { authorization: 'Bearer x', 'x-api-key': 'y' },
    { origin: 'https://evil.example', cookie: '__proto__=1' },
    { traceparent: '00-0-0-0' },
    { expect: '100-continue' },
  ])
}

/** Why an answer breaks what the document says; undefined = it does not. */
function faultOf(
  { answers }: Operation,
  { status, headers, body, isLost = false }: FuzzAnswer,
): string | undefined {
  if (NEVER.has(status)) return `must never be ${status}`
  const check = answers.get(status)
  if (check === undefined) return `status ${status} is not documented`
  if (isLost) return undefined
  if (headers['x-request-id'] === undefined) return 'has no x-request-id'
  if (status >= 400 && body.length > MAX_PROBLEM_CHARS)
    return `an error of ${body.length} characters`
  if (!String(headers['content-type'] ?? '').startsWith('application/json')) {
    return status < 400 ? undefined : `an error of type ${headers['content-type']}`
  }
  try {
    return check(JSON.parse(body))
  } catch {
    return 'is no JSON'
  }
}
