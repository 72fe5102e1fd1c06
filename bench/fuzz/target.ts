import { once as event } from 'node:events'
import { Agent, request as httpRequest } from 'node:http'
import { text } from 'node:stream/consumers'
import { isRecord } from '../../server/fault.js'
import { KNOBS } from '../../server/knobs.js'
import { INPUTS } from '../../server/oip/infer.js'
import { operationsOf } from './document.js'
import { type FuzzAnswer, type FuzzRequest, type FuzzResult, fuzz } from './fuzz.js'
import type { Words } from './values.js'

export type Send = (request: FuzzRequest) => Promise<FuzzAnswer>

export type RunOptions = {
  readonly send: Send
  readonly count: number
  readonly seed: number
  /** What the model knows beside what /v1/models tells. */
  readonly words?: Words
  readonly onAnswer?: () => void
}

const BODY_LIMIT_BYTES = KNOBS.bodyLimitBytes.fallback
const CLOSED = new Set(['EPIPE', 'ECONNRESET'])
/**
 * Stands for an answer that was lost: what is beyond the limit is refused unread and its connection closed, while
 * the body is still on its way. A server that died of it does not answer what comes next.
 */
const UNREAD: FuzzAnswer = { status: 413, headers: {}, body: '', isLost: true }

/** Sends over one connection to a server that listens at `origin`. */
export function socketSender(origin: string): { readonly send: Send; close(): void } {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  const once = async ({ method, url, headers, payload }: FuzzRequest): Promise<FuzzAnswer> => {
    const length = payload === undefined ? {} : { 'content-length': String(payload.length) }
    const request = httpRequest(origin + url, {
      method,
      agent,
      headers: { ...headers, ...length },
    })
    // A server that has answered need not read the rest of a body; one that has not is a failure below.
    request.on('error', () => {})
    request.end(payload)
    const [response] = await event(request, 'response')
    return { status: response.statusCode, headers: response.headers, body: await text(response) }
  }
  return {
    send: (request) =>
      once(request).catch((error: unknown) => {
        const isUnread = (request.payload?.length ?? 0) > BODY_LIMIT_BYTES
        if (isUnread && isRecord(error) && CLOSED.has(String(error.code))) return UNREAD
        throw error
      }),
    close: () => agent.destroy(),
  }
}

/** Fuzzes a server by its own OpenAPI document and the words of its own model. */
export async function fuzzServer(options: RunOptions): Promise<FuzzResult> {
  const { send, words, ...rest } = options
  const read = async (url: string) =>
    JSON.parse((await send({ method: 'GET', url, headers: {} })).body)
  const operations = operationsOf(await read('/docs/json'))
  const { models } = await read('/v1/models')
  return fuzz({ ...rest, send, operations, words: { ...wordsOf(models[0]), ...words } })
}

function wordsOf(model: unknown): Words {
  const { name, version, exampleItems, actions, tasks } = isRecord(model) ? model : {}
  const items = strings(exampleItems)
  return {
    item: items,
    candidates: items,
    actions: strings(actions),
    model: [`${name}`, `${name}@${version}`],
    weights: Array.isArray(tasks) ? tasks.map((task) => `${task?.name}`) : [],
    // Of the inference protocol: in its URLs, and of its tensors.
    '{name}': [`${name}`],
    '{version}': [`${version}`],
    name: INPUTS.map((input) => input.name),
    datatype: ['BYTES', 'INT64'],
    // Few users, whose histories and K/V are met again.
    id: ['u1', 'u2', 'u3', 'u4', 'u5'],
  }
}

function strings(value: unknown): readonly string[] {
  return Array.isArray(value) ? value.filter((one) => typeof one === 'string') : []
}
