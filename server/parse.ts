import type { RankOptions } from '../falcon/types.js'
import { RankError } from '../model/errors.js'
import type { RankInput } from '../model/request.js'
import {
  crowdFault,
  envelope,
  envelopeFault,
  type Fault,
  isRecord,
  rankFault,
  request,
} from './fault.js'
import type { RankRequest } from './schema.js'

export type Limits = {
  /** Over all histories and series of one request. */
  readonly maxHistoryEvents: number
  readonly maxCandidates: number
  readonly maxBatchRequests: number
}

/** A checked request, free of HTTP. */
export type Parsed = {
  readonly input: RankInput
  readonly options: RankOptions
  readonly explain: boolean
  readonly model: string | undefined
  /** How many of `input.histories` come from `history`. */
  readonly mainHistories: 0 | 1
}

/**
 * The request in a parsed JSON body; `nowSec` is its time when it has none.
 * @throws {RankError} INVALID_REQUEST, LIMIT_EXCEEDED with the JSON pointer of the fault
 */
export function parseRank(body: unknown, limits: Limits, nowSec: number): Parsed {
  if (isRecord(body)) {
    checkLengths(body, limits)
    const crowd = crowdFault(body)
    if (crowd !== undefined) throw invalid(crowd)
  }
  if (!request.Check(body)) throw invalid(rankFault(body))
  return toParsed(body, nowSec)
}

/**
 * The requests of a batch, each still to be parsed.
 * @throws {RankError} INVALID_REQUEST, LIMIT_EXCEEDED
 */
export function parseBatch(body: unknown, { maxBatchRequests }: Limits): readonly unknown[] {
  const requests = isRecord(body) ? lengthOf(body.requests) : 0
  checkLength('/requests', 'requests', requests, maxBatchRequests)
  if (!envelope.Check(body)) throw invalid(envelopeFault(body))
  return body.requests
}

function toParsed(body: RankRequest, nowSec: number): Parsed {
  const { user, history, histories = [], series = {}, time = nowSec } = body
  const { historyOffset, topK, weights, deadlineMs, partial } = body
  return {
    input: {
      user,
      histories: history === undefined ? histories : [history, ...histories],
      series,
      ...(historyOffset !== undefined && { historyOffset }),
      candidates: body.candidates.map((c) => (typeof c === 'string' ? { item: c } : c)),
      time,
    },
    options: {
      ...(topK !== undefined && { topK }),
      ...(weights !== undefined && { weights }),
      ...(deadlineMs !== undefined && { deadlineMs }),
      ...(partial !== undefined && { partial }),
    },
    explain: body.explain ?? false,
    model: body.model,
    mainHistories: history === undefined ? 0 : 1,
  }
}

/** Lengths come before the schema: reading them costs nothing, the schema walks every element. */
function checkLengths(body: Record<string, unknown>, limits: Limits): void {
  checkLength('/candidates', 'candidates', lengthOf(body.candidates), limits.maxCandidates)
  const events: [path: string, count: number][] = [
    ['/history', lengthOf(body.history)],
    ['/histories', Array.isArray(body.histories) ? totalLength(body.histories) : 0],
    ['/series', isRecord(body.series) ? totalLength(Object.values(body.series)) : 0],
  ]
  const total = events.reduce((sum, [, count]) => sum + count, 0)
  const [path] = events.reduce((most, next) => (next[1] > most[1] ? next : most))
  checkLength(path, 'events of all histories and series', total, limits.maxHistoryEvents)
}

function checkLength(path: string, what: string, length: number, limit: number): void {
  if (length <= limit) return
  const message = `${what} must be at most ${limit}, got ${length}`
  throw new RankError('LIMIT_EXCEEDED', message, { path })
}

function totalLength(lists: readonly unknown[]): number {
  return lists.reduce<number>((sum, list) => sum + lengthOf(list), 0)
}

function lengthOf(value: unknown): number {
  return Array.isArray(value) ? value.length : 0
}

function invalid({ path, message }: Fault): RankError {
  return new RankError('INVALID_REQUEST', message, { path })
}
