import type { Ranker, RankResult } from '../falcon/types.js'
import { RankError } from '../model/errors.js'
import { taskWeights } from '../model/heads.js'
import type { Parsed } from './parse.js'

/** A ranking, and how many runs a crashed worker cost it. */
export type Ranked = { readonly result: RankResult; readonly retries: 0 | 1 }

/**
 * Ranks one request; a run lost to a crashed worker is tried once more, within the same deadline and
 * as long as its client waits (`signal`).
 * @throws {RankError} with paths as the client wrote the request
 */
export async function rankOnce(
  ranker: Ranker,
  parsed: Parsed,
  signal?: AbortSignal,
): Promise<Ranked> {
  // Before any work, and not left to the ranker: a bad name must not cost a prefill.
  taskWeights(ranker.model.tasks, undefined, parsed.options.weights)
  const { input, mainHistories } = parsed
  const options = signal === undefined ? parsed.options : { ...parsed.options, signal }
  const startMs = performance.now()
  try {
    return { result: await ranker.rank(input, options), retries: 0 }
  } catch (error) {
    if (!isCrash(error)) throw asWritten(error, mainHistories)
  }
  const { deadlineMs } = options
  const leftMs = deadlineMs && deadlineMs - (performance.now() - startMs)
  if (leftMs !== undefined && leftMs <= 0) {
    throw new RankError('DEADLINE_EXCEEDED', `a worker crashed and the ${deadlineMs} ms are over`)
  }
  const retry = leftMs === undefined ? options : { ...options, deadlineMs: leftMs }
  try {
    return { result: await ranker.rank(input, retry), retries: 1 }
  } catch (error) {
    throw asWritten(error, mainHistories)
  }
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
