import type { FastifyRequest } from 'fastify'
import type { Ranker, RankOptions, RankResult } from '../falcon/types.js'
import { RankError } from '../model/errors.js'
import { taskWeights } from '../model/heads.js'
import type { OnStep } from '../model/step.js'
import type { Ask, Turn } from './door.js'
import type { Metrics } from './metrics.js'
import type { ModelLease } from './models/version.js'
import type { Parsed } from './parse.js'
import { tracedRanking } from './tracing.js'

/** A ranking, and how many runs a crashed worker cost it. */
export type Ranked = { readonly result: RankResult; readonly retries: 0 | 1 }

/**
 * Ranks one request that `checkAsked` has passed; a run lost to a crashed worker is tried once more,
 * within the same deadline and as long as its client waits (the turn's `signal`).
 * @throws {RankError} with paths as the client wrote the request
 */
export async function rankOnce(
  ranker: Ranker,
  parsed: Parsed,
  turn: Pick<RankOptions, 'waitedMs' | 'deadlineMs' | 'signal'>,
  onStep?: OnStep,
): Promise<Ranked> {
  const { input, mainHistories } = parsed
  const options: RankOptions = {
    ...parsed.options,
    ...turn,
    ...(onStep !== undefined && { onStep }),
  }
  return retried(options, mainHistories, (own) => ranker.rank(input, own))
}

/**
 * Does `run`, once more if a worker crashed, with what is left of the deadline then.
 * @throws {RankError} with paths as the client wrote the request
 */
export async function retried<T, O extends Pick<RankOptions, 'waitedMs' | 'deadlineMs'>>(
  options: O,
  mainHistories: 0 | 1,
  run: (options: O) => Promise<T>,
): Promise<{ readonly result: T; readonly retries: 0 | 1 }> {
  const startMs = performance.now()
  try {
    return { result: await run(options), retries: 0 }
  } catch (error) {
    if (!isCrash(error)) throw asWritten(error, mainHistories)
  }
  const { deadlineMs = Number.POSITIVE_INFINITY } = options
  const waitedMs = (options.waitedMs ?? 0) + performance.now() - startMs
  if (waitedMs >= deadlineMs) {
    throw new RankError('DEADLINE_EXCEEDED', `a worker crashed and the ${deadlineMs} ms are over`)
  }
  try {
    return { result: await run({ ...options, waitedMs }), retries: 1 }
  } catch (error) {
    throw asWritten(error, mainHistories)
  }
}

/**
 * What can be said against a request before any work: a bad name must not wait, nor cost a prefill.
 * @throws {RankError} INVALID_REQUEST for a weight of no task
 */
export function checkAsked({ model }: Ranker, { options }: Parsed): void {
  taskWeights(model.tasks, undefined, options.weights)
}

/** What the door is asked for a ranking, after `checkAsked`. @throws {RankError} INVALID_REQUEST */
export function askOf(ranker: Ranker, parsed: Parsed): Omit<Ask, 'signal'> {
  checkAsked(ranker, parsed)
  const { input, options } = parsed
  const { deadlineMs, partial } = options
  return { workMs: ranker.predictMs(input, options), deadlineMs, partial }
}

/** `rankOnce`, counted in the request's outcome and in the metrics. */
export async function rankCounted(
  { outcome, trace }: FastifyRequest,
  metrics: Metrics,
  { id, ranker }: ModelLease,
  parsed: Parsed,
  turn: Turn & { readonly signal: AbortSignal },
): Promise<Ranked> {
  const ranked = await tracedRanking(trace, (onStep) => rankOnce(ranker, parsed, turn, onStep))
  const { result, retries } = ranked
  metrics.ranked(id, result, retries, trace?.exemplar)
  outcome.candidates += result.candidates
  outcome.historyTokens += result.historyTokens
  outcome.kv = outcome.requests === 1 ? result.kv.state : undefined
  return ranked
}

function isCrash(error: unknown): boolean {
  return error instanceof RankError && error.code === 'WORKER_CRASHED'
}

/** `/histories/0/…` counts `history` as the first source; the client counts it apart. */
export function asWritten(error: unknown, mainHistories: 0 | 1): unknown {
  if (mainHistories === 0 || !(error instanceof RankError)) return error
  const [, source, rest] = /^\/histories\/(\d+)(.*)$/.exec(error.path ?? '') ?? []
  if (source === undefined) return error
  const path = source === '0' ? `/history${rest}` : `/histories/${Number(source) - 1}${rest}`
  return new RankError(error.code, error.message, { path, cause: error })
}
