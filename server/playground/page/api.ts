/// <reference lib="dom" />
import type { RankResult, RankTimings } from '../../../falcon/types.js'
import type { SampleLine } from '../samples.js'
import type { Draft, Model } from './draft.js'
import { askKey, storedKey } from './key.js'

/** Talks to the server that the page came from, and to no other. */

type Explained =
  | 'historyTokens'
  | 'truncatedEvents'
  | 'candidates'
  | 'scored'
  | 'microBatches'
  | 'microBatchSize'

export type Answer = Pick<RankResult, 'items' | 'kv' | 'timings' | 'warnings'> & {
  readonly model: string
  readonly partial?: true
  readonly explain: Pick<RankResult, Explained> & {
    readonly timings: RankTimings & { readonly parseMs: number }
    readonly retries: number
  }
}

export type SampleUser = {
  readonly request: unknown
  readonly shown: { readonly [item: string]: readonly string[] }
  readonly catalogue: {
    readonly features: readonly string[]
    readonly items: { readonly [item: string]: readonly (string | number | null)[] }
  }
}

/** What the server refused, or why it could not be asked. */
export class Problem extends Error {
  readonly code: string
  readonly path: string | undefined

  constructor(code: string, message: string, path?: string) {
    super(message)
    this.code = code
    this.path = path
  }
}

/** The served model; undefined while it loads. */
export async function getModel(): Promise<Model | undefined> {
  const { models }: { models: readonly Model[] } = await json('/v1/models')
  return models[0]
}

export async function getSamples(): Promise<readonly SampleLine[]> {
  const { samples }: { samples: readonly SampleLine[] } = await json('/playground/samples')
  return samples
}

export async function getSample(name: string): Promise<SampleUser> {
  return json(`/playground/samples/${encodeURIComponent(name)}`)
}

/** Ranks `draft`, explained; also the time until the answer was read, in milliseconds. */
export async function postRank(
  draft: Draft,
  signal?: AbortSignal,
): Promise<{ readonly answer: Answer; readonly roundTripMs: number }> {
  const startMs = performance.now()
  const answer: Answer = await json('/v1/rank', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...draft, explain: true }),
    ...(signal !== undefined && { signal }),
  })
  return { answer, roundTripMs: performance.now() - startMs }
}

export async function getMetrics(): Promise<string> {
  return (await ask('/metrics')).text()
}

async function json(url: string, init?: RequestInit) {
  return (await ask(url, init)).json()
}

/** Asks for a key where the server wants one. @throws {Problem} what the server says, or UNREACHABLE */
async function ask(url: string, init: RequestInit = {}): Promise<Response> {
  const key = storedKey()
  const headers = new Headers(init.headers)
  if (key !== undefined) headers.set('authorization', `Bearer ${key}`)
  const response = await fetch(url, { ...init, headers }).catch((error: unknown) => {
    if (error instanceof DOMException && error.name === 'AbortError') throw error
    throw new Problem('UNREACHABLE', 'the server does not answer')
  })
  if (response.ok) return response
  if (response.status === 401 && (await askKey(key))) return ask(url, init)
  const body: unknown = await response.json().catch(() => undefined)
  const text = (name: string) => {
    const value: unknown =
      typeof body === 'object' && body !== null ? Reflect.get(body, name) : undefined
    return typeof value === 'string' ? value : undefined
  }
  const { status, statusText } = response
  throw new Problem(
    text('code') ?? `HTTP ${status}`,
    text('message') ?? (statusText || 'the server gave no reason'),
    text('path'),
  )
}
