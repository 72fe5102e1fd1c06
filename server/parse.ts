import type { RankOptions, RetrieveOptions } from '../falcon/types.js'
import { RankError } from '../model/errors.js'
import type { HistoryEvent, HistoryInput, RankInput, RetrieveInput } from '../model/request.js'
import {
  bodyFault,
  type Checker,
  crowdFault,
  envelope,
  envelopeFault,
  events,
  type Fault,
  isRecord,
  prefetch,
  request,
  retrieve,
} from './fault.js'
import { withoutPlain } from './plain.js'
import {
  DEFAULT_TOP_K,
  MAX_ID_CHARS,
  type PrefetchRequest,
  type RankRequest,
  type RetrieveRequest,
} from './schema.js'

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

export type ParsedRetrieve = {
  readonly input: RetrieveInput
  readonly options: RetrieveOptions
  /** Who ranks what was retrieved, and how. */
  readonly rank: RetrieveRequest['rank']
  readonly explain: boolean
  readonly model: string | undefined
  readonly mainHistories: 0 | 1
}

export type ParsedPrefetch = {
  readonly input: HistoryInput
  readonly useStored: boolean
  readonly wait: boolean
  readonly model: string | undefined
  readonly mainHistories: 0 | 1
}

export type ParsedEvents = {
  readonly events: readonly HistoryEvent[]
  readonly idempotencyKey: string | undefined
}

/**
 * The request in a parsed JSON body; `nowSec` is its time when it has none.
 * @throws {RankError} INVALID_REQUEST, LIMIT_EXCEEDED with the JSON pointer of the fault
 */
export function parseRank(body: unknown, limits: Limits, nowSec: number): Parsed {
  check(request, body, limits)
  return toParsed(body, nowSec)
}

/** @throws {RankError} INVALID_REQUEST, LIMIT_EXCEEDED with the JSON pointer of the fault */
export function parseRetrieve(body: unknown, limits: Limits, nowSec: number): ParsedRetrieve {
  if (isRecord(body)) {
    checkLength('/exclude', 'excluded items', lengthOf(body.exclude), limits.maxHistoryEvents)
  }
  check(retrieve, body, limits)
  const { topK = DEFAULT_TOP_K, exclude = [], excludeHistory = true, deadlineMs, rank } = body
  if (rank !== undefined) checkLength('/topK', 'items to rank', topK, limits.maxCandidates)
  const { input, useStored, mainHistories } = toHistory(body, nowSec)
  return {
    input: { ...input, exclude, excludeHistory },
    options: {
      topK,
      ...(useStored && { useStored }),
      ...(deadlineMs !== undefined && { deadlineMs }),
    },
    rank,
    explain: body.explain ?? false,
    model: body.model,
    mainHistories,
  }
}

/** @throws {RankError} INVALID_REQUEST, LIMIT_EXCEEDED with the JSON pointer of the fault */
export function parsePrefetch(body: unknown, limits: Limits, nowSec: number): ParsedPrefetch {
  check(prefetch, body, limits)
  const { wait = false, model } = body
  return { ...toHistory(body, nowSec), wait, model }
}

/**
 * Events to store; `header` is the Idempotency-Key, which the body may have instead.
 * @throws {RankError} INVALID_REQUEST, LIMIT_EXCEEDED with the JSON pointer of the fault
 */
export function parseEvents(body: unknown, header: unknown, limits: Limits): ParsedEvents {
  if (isRecord(body)) {
    checkLength('/events', 'events', lengthOf(body.events), limits.maxHistoryEvents)
  }
  check(events, body, limits)
  const { idempotencyKey = header } = body
  if (idempotencyKey === undefined) return { events: body.events, idempotencyKey }
  if (
    typeof idempotencyKey !== 'string' ||
    idempotencyKey === '' ||
    idempotencyKey.length > MAX_ID_CHARS
  ) {
    const message = `Idempotency-Key must have 1 to ${MAX_ID_CHARS} characters, got ${lengthText(idempotencyKey)}`
    throw new RankError('INVALID_REQUEST', message)
  }
  if (header !== undefined && header !== idempotencyKey) {
    const message = 'must be the same as the header Idempotency-Key, got another'
    throw invalid({ path: '/idempotencyKey', message })
  }
  return { events: body.events, idempotencyKey }
}

/** The user of a URL. @throws {RankError} INVALID_REQUEST */
export function parseUserId(params: unknown): string {
  const id = isRecord(params) ? params.id : undefined
  if (typeof id === 'string' && id !== '' && id.length <= MAX_ID_CHARS) return id
  const message = `a user id must have 1 to ${MAX_ID_CHARS} characters, got ${lengthText(id)}`
  throw new RankError('INVALID_REQUEST', message)
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
  const { topK, weights, deadlineMs, partial } = body
  const { input, useStored, mainHistories } = toHistory(body, nowSec)
  return {
    input: {
      ...input,
      candidates: body.candidates.map((c) => (typeof c === 'string' ? { item: c } : c)),
    },
    options: {
      ...(useStored && { useStored }),
      ...(topK !== undefined && { topK }),
      ...(weights !== undefined && { weights }),
      ...(deadlineMs !== undefined && { deadlineMs }),
      ...(partial !== undefined && { partial }),
    },
    explain: body.explain ?? false,
    model: body.model,
    mainHistories,
  }
}

function toHistory(body: RankRequest | RetrieveRequest | PrefetchRequest, nowSec: number) {
  const { user, history, histories = [], series = {}, historyOffset, time = nowSec } = body
  const isGiven = history !== undefined
  return {
    input: {
      user,
      histories: isGiven ? [history, ...histories] : histories,
      series,
      ...(historyOffset !== undefined && { historyOffset }),
      time,
    },
    useStored: !isGiven,
    mainHistories: isGiven ? 1 : 0,
  } as const
}

/** What is far too large is refused before the schema walks it, and the schema walks only what it must. */
function check<T>(checker: Checker<T>, body: unknown, limits: Limits): asserts body is T {
  if (isRecord(body)) {
    checkLengths(body, limits)
    const rest = withoutPlain(body)
    const crowd = crowdFault(rest)
    if (crowd !== undefined) throw invalid(crowd)
    if (checker.Check(rest)) return
  }
  throw invalid(bodyFault(checker, body))
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

function lengthText(value: unknown): string {
  return typeof value === 'string' ? String(value.length) : 'none'
}

function invalid({ path, message }: Fault): RankError {
  return new RankError('INVALID_REQUEST', message, { path })
}
