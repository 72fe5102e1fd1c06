import { setMaxListeners } from 'node:events'
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http'
import type { FastifyReply, FastifyRequest } from 'fastify'
import Type from 'typebox'
import type { Ranker } from '../falcon/types.js'
import { show } from '../model/check.js'
import { RankError } from '../model/errors.js'
import type { OnStep } from '../model/step.js'
import type { Admission, Caller, Job } from './admission.js'
import type { BodyBudget } from './body-budget.js'
import { PRIORITIES, type Priority } from './fair-queue.js'
import type { Owner } from './loop-queue.js'
import { MAX_DEADLINE_MS } from './schema.js'

const PRIORITY_HEADER = 'x-priority'
const DEADLINE_HEADER = 'x-deadline-ms'

/** What one request says of one piece of work. */
export type Ask = {
  /** Predicted milliseconds, where they can be. */
  readonly workMs: number | undefined
  /** Of the body; the header's counts where it is shorter. */
  readonly deadlineMs?: number | undefined
  readonly partial?: boolean | undefined
  /** Nobody waits for it any more. */
  readonly signal: AbortSignal
}

/** Pieces of one request that were let in together; each is done when its turn comes. */
export type Admitted = <T>(ask: Ask, work: (turn: Turn) => Promise<T>) => Promise<T>

export type Turn = {
  /** Since the request's headers were read. */
  readonly waitedMs: number
  /** The shorter of the body's and the header's. */
  readonly deadlineMs?: number
}

export type Door = {
  /** The ranker, when it is loaded. @throws {RankError} NOT_READY */
  loaded(): Ranker
  /**
   * Before the body is read: refuses what would have to wait too long whatever is in it.
   * @throws {RankError} NOT_READY, OVERLOADED, INVALID_REQUEST for a header
   */
  open(request: FastifyRequest, reply: FastifyReply, priority?: Priority): void
  /**
   * Lets in all pieces of work of a request that was opened, or none.
   * @throws {RankError} OVERLOADED
   */
  admit(request: FastifyRequest, asks: readonly Ask[]): Admitted
  /** Whose body it is that comes with a request, opened or not. */
  ownerOf(request: FastifyRequest): Owner
}

/** Both hold for all rankings of a batch. */
export const HEADERS = Type.Object({
  [PRIORITY_HEADER]: Type.Optional(
    Type.Union(
      PRIORITIES.map((name) => Type.Literal(name)),
      {
        description:
          'Whose turn comes first when requests wait: 16 to 4 to 1 shares of the compute; low is refused first. Absent = normal.',
      },
    ),
  ),
  [DEADLINE_HEADER]: Type.Optional(
    Type.Number({
      minimum: 1,
      maximum: MAX_DEADLINE_MS,
      description: 'As `deadlineMs`, and known before the body is read; the shorter one counts.',
    }),
  ),
})

export type DoorOptions = {
  readonly ranker: () => Ranker | undefined
  readonly admission: Admission
  readonly bodies: BodyBudget
  readonly callerOf: (request: FastifyRequest) => Caller
  /** Whether the gate before it has looked at a request's wait already. */
  readonly hasPassed: (request: IncomingMessage) => boolean
}

const LOADING_RETRY_MS = 2000

/** Where requests are refused before any work. */
export function createDoor(options: DoorOptions): Door {
  const { ranker, admission, bodies, callerOf, hasPassed } = options
  const loaded = () => {
    const ready = ranker()
    if (ready !== undefined) return ready
    throw new RankError('NOT_READY', 'the model is still loading; see /readyz', {
      retryAfterMs: LOADING_RETRY_MS,
    })
  }
  const asked = new WeakMap<FastifyRequest, Job>()
  const jobOf = (request: FastifyRequest, { workMs, deadlineMs, partial, signal }: Ask): Job => {
    const job = asked.get(request)
    if (job === undefined) throw new Error('a request that did not pass the door')
    const shortest = Math.min(
      deadlineMs ?? Number.POSITIVE_INFINITY,
      job.deadlineMs ?? Number.POSITIVE_INFINITY,
    )
    const own = shortest === Number.POSITIVE_INFINITY ? undefined : shortest
    return { ...job, workMs, deadlineMs: own, partial, signal }
  }
  return {
    loaded,
    open(request, reply, priority) {
      loaded()
      const { headers, outcome, raw } = request
      const job = jobOfHeaders(headers, callerOf(request), outcome.startMs, priority)
      if (!hasPassed(raw)) admission.check(job, false)
      const room = bodies.reserve(request, reply)
      if (room !== undefined) throw admission.noRoom(job, room.message, room.retryAfterMs)
      asked.set(request, job)
    },
    ownerOf(request) {
      const { caller, priority = 'normal' } = asked.get(request) ?? { caller: callerOf(request) }
      return { key: caller.name, share: caller.share, priority }
    },
    admit(request, asks) {
      bodies.settle(request)
      const [first] = asks
      if (first !== undefined) {
        const workMs = asks.every((ask) => ask.workMs !== undefined)
          ? asks.reduce((sum, ask) => sum + (ask.workMs ?? 0), 0)
          : undefined
        // Several have a deadline each: they are held to it when their turn comes.
        const whole = asks.length === 1 ? first : { workMs, signal: first.signal }
        admission.check(jobOf(request, whole), true)
      }
      return (ask, work) => {
        const job = jobOf(request, ask)
        const { deadlineMs } = job
        const own = deadlineMs !== undefined && { deadlineMs }
        const took = toldWait(request.trace?.onStep, job.priority)
        const turn = admission.run(job, (waitedMs) => {
          took(false)
          return work({ waitedMs, ...own })
        })
        turn.catch(() => took(true))
        return turn
      }
    },
  }
}

/** Tells of the wait for a turn when it ends, once: what fails before its turn fails waiting. */
function toldWait(onStep: OnStep | undefined, priority: Priority): (hasFailed: boolean) => void {
  if (onStep === undefined) return () => {}
  const startMs = performance.now()
  let isTold = false
  return (error) => {
    if (isTold) return
    isTold = true
    onStep('queue', startMs, performance.now(), { priority, ...(error && { error }) })
  }
}

/**
 * What a request's headers say of its work.
 * @param priority - where the header does not choose it
 * @throws {RankError} INVALID_REQUEST
 */
export function jobOfHeaders(
  headers: IncomingHttpHeaders,
  caller: Caller,
  startMs: number,
  priority: Priority = priorityOf(headers[PRIORITY_HEADER]),
): Job {
  const bytes = Number(headers['content-length'])
  // What is compressed says nothing by its length.
  const isPlain = headers['content-encoding'] === undefined && Number.isFinite(bytes)
  const deadlineMs = deadlineOf(headers[DEADLINE_HEADER])
  return { caller, priority, deadlineMs, startMs, ...(isPlain && { bytes }) }
}

/** @throws {RankError} INVALID_REQUEST */
function priorityOf(header: string | string[] | undefined): Priority {
  if (header === undefined) return 'normal'
  const found = PRIORITIES.find((name) => name === header)
  if (found !== undefined) return found
  const expected = `${PRIORITY_HEADER} must be one of ${PRIORITIES.join(', ')}`
  throw new RankError('INVALID_REQUEST', `${expected}, got ${shown(header)}`)
}

/** @throws {RankError} INVALID_REQUEST */
function deadlineOf(header: string | string[] | undefined): number | undefined {
  if (header === undefined) return undefined
  const ms = typeof header === 'string' && /^\d{1,5}(\.\d{1,6})?$/.test(header) ? Number(header) : 0
  if (ms >= 1 && ms <= MAX_DEADLINE_MS) return ms
  const expected = `${DEADLINE_HEADER} must be a number from 1 to ${MAX_DEADLINE_MS}`
  throw new RankError('INVALID_REQUEST', `${expected}, got ${shown(header)}`)
}

function shown(header: string | string[]): string {
  return show(String(header).slice(0, 100))
}

/** Aborted when the client is gone before its reply is. */
export function clientOf({ raw }: FastifyReply): AbortSignal {
  const controller = new AbortController()
  // One listener for each ranking of a batch.
  setMaxListeners(0, controller.signal)
  const onClose = () => {
    if (!raw.writableFinished) controller.abort()
  }
  if (raw.closed) onClose()
  else raw.once('close', onClose)
  return controller.signal
}
