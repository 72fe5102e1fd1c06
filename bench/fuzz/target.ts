import { once as event } from 'node:events'
import { Agent, request as httpRequest } from 'node:http'
import { text } from 'node:stream/consumers'
import { isRecord } from '../../server/fault.js'
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

const CLOSED = new Set(['EPIPE', 'ECONNRESET'])

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
    // A body that is refused in the middle, as broken gzip is, can lose the answer to what is still on its
    // way: it is asked again, once. A server that is gone is gone then, too.
    send: (request) =>
      once(request).catch((error: unknown) => {
        if (!isRecord(error) || !CLOSED.has(String(error.code))) throw error
        return once(request)
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
