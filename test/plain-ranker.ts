import type { TestContext } from 'node:test'
import { Registry } from 'prom-client'
import { DEFAULT_EVENT_LIMITS } from '../cache/events.js'
import { createMemoryEvents } from '../cache/events-memory.js'
import { userHash } from '../cache/key.js'
import type { Ranker, RankResult } from '../falcon/types.js'
import { RankError } from '../model/errors.js'
import type { RankInput } from '../model/request.js'
import { type AppOptions, buildApp } from '../server/app.js'

/** For tests: a ranker that is a plain object, and an app around it. */

export const LIMITS = {
  bodyLimitBytes: 64 * 1024,
  maxHistoryEvents: 20,
  maxCandidates: 10,
  maxBatchRequests: 4,
  maxQueueMs: 100,
  bodyBudgetBytes: 256 * 2 ** 20,
  playground: true,
}

const MODEL = {
  name: 'toy',
  version: 'abc123',
  tasks: [{ name: 'click', type: 'binary' }],
  actions: ['click', 'like'],
  weights: { click: 1 },
  exampleItems: ['a', 'b', 'c'],
  maxTokens: 64,
  precision: 'fp32',
  engine: 'plain',
  microBatchSize: 4,
  slackEvents: 0,
} as const

/** What the folder of that ranker's bundle would hold. */
export const TOY = { name: MODEL.name, version: MODEL.version }

/** Candidate i scores 1 / (i + 1), best first. */
export function resultOf(input: RankInput, rest: Partial<RankResult> = {}): RankResult {
  return {
    items: input.candidates.map(({ item }, index) => {
      const score = 1 / (index + 1)
      return { item, index, score, tasks: { click: score }, logits: [0.5] }
    }),
    kv: {
      state: 'stale',
      tier: 2,
      reusedTokens: 8,
      prefilledTokens: 2,
      decision: 'append',
      measuredMs: 5,
      predictedMs: 4,
    },
    timings: { sequenceMs: 1, historyMs: 2, scoreMs: 3, headsMs: 4, totalMs: 10 },
    warnings: [],
    historyTokens: 10,
    truncatedEvents: 0,
    unknownItems: { history: { count: 0, items: [] }, candidates: { count: 0, items: [] } },
    candidates: input.candidates.length,
    scored: input.candidates.length,
    microBatches: 1,
    microBatchMs: [3],
    microBatchSize: 4,
    ...rest,
  }
}

export function rankerOf(
  rank: Ranker['rank'] = async (input) => resultOf(input),
  close: Ranker['close'] = async () => {},
): Ranker {
  const events = createMemoryEvents(DEFAULT_EVENT_LIMITS)
  return {
    model: MODEL,
    rank,
    retrieve: async () => {
      throw new RankError('INVALID_REQUEST', 'no retrieval head', { path: '/model' })
    },
    predictRetrieveMs: () => undefined,
    predictMs: () => undefined,
    predictPrefetchMs: () => undefined,
    depth: () => ({ runs: 2, requests: 3 }),
    prefetch: async () => ({
      kv: Promise.resolve({ state: 'miss', reusedTokens: 0, prefilledTokens: 10 }),
      warnings: [],
    }),
    appendEvents: (userId, posted, key) => events.append(userHash(userId), posted, key),
    eventsOf: async (userId) => (await events.get(userHash(userId))).events,
    kvOf: async () => ({ memory: 10 }),
    forget: (userId) => events.forget(userHash(userId)),
    stats: () => ({
      engine: { workers: 2, pendingJobs: 3, restarts: 1 },
      cache: { entries: 5, kvBytes: 600, maxKvBytes: 1000, evictions: 7 },
      events: events.stats(),
    }),
    close,
  }
}

export function appOf(rank?: Ranker['rank'], options: Partial<AppOptions> = {}) {
  const ranker = rankerOf(rank)
  return buildApp({
    ranker: () => ranker,
    config: LIMITS,
    registry: new Registry(),
    nowSec: () => 1000,
    ...options,
  })
}

/** Posts JSON, or the text or bytes of what should have been JSON, to an app of its own. */
export async function client(t: TestContext, ...args: Parameters<typeof appOf>) {
  const app = await appOf(...args)
  t.after(() => app.close())
  return (body: unknown, url = '/v1/rank', headers: Record<string, string> = {}) =>
    app.inject({
      method: 'POST',
      url,
      payload: typeof body === 'string' || Buffer.isBuffer(body) ? body : JSON.stringify(body),
      headers: { 'content-type': 'application/json', ...headers },
    })
}
