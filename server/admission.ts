import { RankError } from '../model/errors.js'
import { createBodyWork } from './body-work.js'
import { type Claim, createFairQueue, type Priority } from './fair-queue.js'
import type { LoopQueue } from './loop-queue.js'
import { createLateness, createPace } from './pace.js'
import { createQuotas } from './quota.js'

/** Who asks, as far as the queue must know: the name and rights of an API key. */
export type Caller = {
  readonly name: string
  /** Weight against other keys where work has to wait, above 0. */
  readonly share: number
  /** Predicted milliseconds of work per second that the key may ask for; absent = no limit of its own. */
  readonly workMsPerSec?: number
}

/** A piece of work that wants to be let in. */
export type Job = {
  readonly caller: Caller
  readonly priority: Priority
  /** Predicted milliseconds; absent where nothing predicts them yet: `bytes` or the mean count for them. */
  readonly workMs?: number | undefined
  /** Of its body. */
  readonly bytes?: number | undefined
  /** When it was asked for, on the clock of `now`. */
  readonly startMs: number
  /** From `startMs` on, for queue and compute. */
  readonly deadlineMs?: number | undefined
  /** Has an answer for its deadline too: it is not refused for what cannot be done in time. */
  readonly partial?: boolean | undefined
  /** Aborted when nobody waits for it any more. */
  readonly signal?: AbortSignal | undefined
}

export type Refusal = 'queue' | 'loop' | 'deadline' | 'quota' | 'memory'

/** Why a job is not let in. */
export type Refused = {
  readonly reason: Refusal
  readonly message: string
  readonly retryAfterMs: number
}

/** What is told of each job, for metrics. */
export type AdmissionEvents = {
  waited(priority: Priority, ms: number): void
  refused(reason: Refusal, priority: Priority): void
  /** Done; `predictedMs` is what it was taken for. */
  worked(key: string, predictedMs: number, measuredMs: number): void
}

export type AdmissionOptions = {
  /** The longest that a job may be expected to wait for its turn. */
  readonly maxQueueMs: number
  /** Jobs under way that keep the engine busy, and how many of them it runs at a time. */
  readonly depth: () => { readonly runs: number; readonly requests: number }
  /** What is longer is refused unread; no limit when absent. */
  readonly maxBodyBytes?: number
  /** Where bodies wait to be parsed; they do not when absent. */
  readonly loop?: Pick<LoopQueue, 'waitMs'>
  readonly on?: AdmissionEvents
  /** Milliseconds, monotonic. */
  readonly now?: () => number
}

export type Admission = ReturnType<typeof createAdmission>

/** The share of the newest job in what a job costs. */
const NEWEST = 1 / 50
/** The least that a job is taken for: nothing is free, if only for the event loop. */
const LEAST_WORK_MS = 0.1

const SILENT: AdmissionEvents = { waited() {}, refused() {}, worked() {} }

type Waiting = Claim & {
  readonly job: Job
  /** What the queue should have made it wait, by the work before it alone. */
  readonly aheadMs: number
  readonly begin: () => void
}

/**
 * The queue in front of the engine, bounded in time: predicted work before a job over the work that is
 * done per millisecond, which is measured while there is always some. A job that would wait longer, or
 * past its deadline, is refused at once. What is let in waits here and not in the engine, so that
 * priorities, shares of keys, deadlines and clients that leave still count.
 */
export function createAdmission(options: AdmissionOptions) {
  const { maxQueueMs, depth, on = SILENT, now = () => performance.now() } = options
  const { loop, maxBodyBytes = Number.POSITIVE_INFINITY } = options
  const queue = createFairQueue<Waiting>()
  const quotas = createQuotas(now)
  let running = 0
  let jobs = 0
  /** Of one job. */
  let meanMs: number | undefined
  /** Until it is measured each run is taken to do what predictions say. */
  const pace = createPace(() => Math.max(1, depth().runs))
  const { perMs: workPerMs } = pace
  const bodyWork = createBodyWork(maxBodyBytes)
  /** The end of the job before, where work has waited ever since. */
  let busySince: number | undefined
  /** Measured over predicted wait: who has a small share also waits for those who come later. */
  const lateness = {
    high: createLateness(now),
    normal: createLateness(now),
    low: createLateness(now),
  }

  const isFull = () => running >= depth().requests
  const claimOf = ({ caller, priority, bytes, workMs = predicted(bytes) }: Job): Claim => ({
    ...{ key: caller.name, share: caller.share, priority },
    workMs: Math.max(LEAST_WORK_MS, workMs),
  })
  const predicted = (bytes: number | undefined) =>
    (bytes === undefined ? undefined : bodyWork.of(bytes)) ?? meanMs ?? 0
  /** What work takes beside the rest that is under way when the engine is full. */
  const computeMs = (workMs: number, { requests } = depth()) => (workMs * requests) / workPerMs()
  /** Milliseconds until a new job has its turn, the work before it only, and until it is done. */
  const expect = (priority: Priority, claim: Claim) => {
    const room = depth()
    if (running < room.requests) return { waitMs: 0, aheadMs: 0, doneMs: claim.workMs }
    const rate = workPerMs()
    const aheadMs = queue.aheadMs(claim) / rate
    // One of those under way ends first, after half of what passes between two ends.
    const waitMs = aheadMs * lateness[priority].ratio() + (meanMs ?? 0) / 2 / rate
    return { waitMs, aheadMs, doneMs: waitMs + computeMs(claim.workMs, room) }
  }

  const refused = (reason: Refusal, message: string, retryAfterMs: number): Refused => ({
    ...{ reason, message },
    retryAfterMs: Math.ceil(retryAfterMs),
  })
  const counted = (job: Job, found: Refused): Refused => {
    on.refused(found.reason, job.priority)
    return found
  }

  /**
   * Refuses what would wait too long. Before the body is read (`isRead`) a job's work is not known for
   * certain: then only its wait is looked at, for the event loop and for the engine. Counts nothing: who
   * asks may have another reason.
   */
  function refusal(job: Job, isRead: boolean): Refused | undefined {
    const { caller, deadlineMs, partial = false, bytes, workMs } = job
    if (isRead && bytes !== undefined && workMs !== undefined) bodyWork.add(bytes, workMs)
    const overdrawnMs = quotas.overdrawnMs(caller)
    if (overdrawnMs > 0) {
      const message = `this API key may ask for ${caller.workMsPerSec} ms of work per second, got more`
      return refused('quota', message, overdrawnMs)
    }
    const claim = claimOf(job)
    const engine = expect(job.priority, claim)
    const loopMs = isRead ? 0 : (loop?.waitMs(claim, bytes) ?? 0)
    const [waitMs, doneMs] = [loopMs + engine.waitMs, loopMs + engine.doneMs]
    if (engine.aheadMs + loopMs > 0 && waitMs > maxQueueMs) {
      const message = `the queue holds at most ${maxQueueMs} ms of work before a ${job.priority} request, got ${waitMs.toFixed(0)}`
      return refused(loopMs > engine.waitMs ? 'loop' : 'queue', message, waitMs)
    }
    if (deadlineMs !== undefined && waitMs > 0) {
      const leftMs = deadlineMs - (now() - job.startMs)
      const neededMs = isRead && !partial ? doneMs : waitMs
      if (neededMs > leftMs) {
        const message = `deadlineMs ${deadlineMs} cannot be met: ${waitMs.toFixed(1)} ms to wait, ${(doneMs - waitMs).toFixed(1)} to compute`
        return refused('deadline', message, Math.min(neededMs - leftMs, waitMs))
      }
    }
    return undefined
  }

  /** Resolves with the claim when the engine has room for the job, and it is its turn. */
  function turnOf(job: Job): Promise<Claim> {
    const { signal, deadlineMs, startMs, partial = false } = job
    const claim = claimOf(job)
    if (signal?.aborted) return Promise.reject(leftAfter(0))
    if (!isFull()) {
      running++
      on.waited(job.priority, 0)
      return Promise.resolve(claim)
    }
    return new Promise((resolve, reject) => {
      const since = now()
      let timer: NodeJS.Timeout | undefined
      const settle = () => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', onAbort)
        on.waited(job.priority, now() - since)
      }
      const waiting: Waiting = {
        ...{ ...claim, job, aheadMs: expect(job.priority, claim).aheadMs },
        begin() {
          settle()
          lateness[job.priority].add(now() - since, waiting.aheadMs)
          const leftMs = (deadlineMs ?? Number.POSITIVE_INFINITY) - (now() - startMs)
          // Who is late by now would only make others late; where nobody waits it may try.
          if (leftMs < computeMs(claim.workMs) && !partial && queue.length() > 0) reject(late())
          else {
            running++
            resolve(claim)
          }
        },
      }
      const late = () => {
        const message = `deadlineMs ${deadlineMs} passed after ${(now() - startMs).toFixed(1)} ms with 0 candidates scored`
        return new RankError('DEADLINE_EXCEEDED', message)
      }
      const onAbort = () => {
        if (!queue.remove(waiting)) return
        settle()
        reject(leftAfter(now() - since))
      }
      const onDeadline = () => {
        if (!queue.remove(waiting)) return
        settle()
        if (!partial) return reject(late())
        // There is nothing left to do for it but to say so.
        running++
        resolve(claim)
      }
      signal?.addEventListener('abort', onAbort, { once: true })
      if (deadlineMs !== undefined) {
        timer = setTimeout(onDeadline, Math.max(0, startMs + deadlineMs - since)).unref()
      }
      queue.push(waiting)
    })
  }

  function leave(job: Job, claim: Claim, tookMs: number, isDone: boolean): void {
    const ended = now()
    running--
    if (isDone) {
      const { workMs = tookMs } = job
      meanMs = meanMs === undefined ? workMs : meanMs + NEWEST * (workMs - meanMs)
      if (busySince !== undefined) {
        pace.add(claim.workMs, ended - busySince)
      }
      on.worked(claim.key, claim.workMs, tookMs)
    }
    busySince = queue.length() > 0 ? ended : undefined
    while (!isFull()) {
      const next = queue.shift()
      if (next === undefined) return
      next.begin()
    }
  }

  return {
    refusal,
    /** Counts a `refusal` that was told. */
    counted,
    /** @throws {RankError} OVERLOADED with `retryAfterMs`, for a `refusal` */
    check(job: Job, isRead: boolean): void {
      const found = refusal(job, isRead)
      if (found !== undefined) throw overloaded(counted(job, found))
    },
    /**
     * Does `work` when it is its turn, and tells it how long it waited since it was asked for.
     * @throws {RankError} CANCELLED, DEADLINE_EXCEEDED while it waits, and what `work` throws
     */
    async run<T>(job: Job, work: (waitedMs: number) => Promise<T>): Promise<T> {
      jobs++
      quotas.take(job.caller, claimOf(job).workMs)
      try {
        const claim = await turnOf(job)
        const began = now()
        let isDone = false
        try {
          const result = await work(began - job.startMs)
          isDone = true
          return result
        } finally {
          leave(job, claim, now() - began, isDone)
        }
      } finally {
        jobs--
      }
    },
    /** Counts the refusal of what is no work: there is no room for one more body. */
    noRoom: (job: Job, message: string, retryAfterMs: number) =>
      overloaded(counted(job, refused('memory', message, retryAfterMs))),
    /** Admitted and not done. */
    inFlight: () => jobs,
    stats: () => ({
      running,
      workPerMs: workPerMs(),
      queued: { high: queue.of('high'), normal: queue.of('normal'), low: queue.of('low') },
    }),
  }
}

function overloaded({ message, retryAfterMs }: Refused): RankError {
  return new RankError('OVERLOADED', message, { retryAfterMs })
}

function leftAfter(ms: number): RankError {
  return new RankError('CANCELLED', `the client left after ${ms.toFixed(1)} ms in the queue`)
}
