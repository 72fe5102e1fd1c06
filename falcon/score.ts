import type { Epoch } from '../cache/epochs.js'
import type { UserHash } from '../cache/key.js'
import type { KvCache } from '../cache/kv.js'
import type { Engine } from '../model/engine/engine.js'
import type { History } from '../model/sequence.js'
import { type OnStep, timed } from '../model/step.js'
import type { Deadline } from './deadline.js'
import { micros } from './numbers.js'
import { planMicroBatches } from './plan.js'
import { decisionOf, type Routes } from './routes.js'
import type { KvUse } from './types.js'

export type ScorerOptions = {
  readonly engine: Engine
  readonly kv: KvCache
  readonly routes: Routes
  /** b: the most candidates in one micro-batch. */
  readonly microBatchSize: number
  /** Embedding rows of one candidate. */
  readonly slots: number
  /** Logits of one candidate. */
  readonly tasks: number
  /** Milliseconds, monotonic. */
  readonly now: () => number
}

export type ToScore = {
  readonly user: UserHash
  readonly history: History
  /** (m * slots) rows of the embedding table, candidate after candidate. */
  readonly rows: Int32Array
  /** Whole seconds since the epoch. */
  readonly queryTime: number
  readonly deadline: Deadline
  readonly epoch: Epoch
  readonly onStep: OnStep | undefined
}

export type Scored = {
  readonly kv: KvUse
  /** (scored, tasks) */
  readonly logits: Float32Array
  /** Fewer than m only for a partial answer at the deadline. */
  readonly scored: number
  /** Of each micro-batch. */
  readonly microBatchMs: readonly number[]
  readonly historyMs: number
}

/** What a partial answer holds when its deadline passed before anything was scored. */
const NOTHING: Scored = {
  kv: { state: 'none', reusedTokens: 0, prefilledTokens: 0 },
  logits: new Float32Array(0),
  scored: 0,
  microBatchMs: [],
  historyMs: 0,
}

/**
 * From tokens to logits: history and candidates in one pass, or candidates in micro-batches against the
 * history's K/V.
 * @see Zhai et al., "Actions Speak Louder than Words", section 3.4 (M-FALCON)
 */
export function createScorer(options: ScorerOptions) {
  const { engine, kv, routes, microBatchSize, slots, tasks, now } = options

  /** Everything in one run: for histories whose K/V could not be reused. */
  const onePass = async (request: ToScore): Promise<Scored> => {
    const { history, rows, queryTime, deadline, onStep } = request
    const { tokens } = history
    const m = rows.length / slots
    const use: KvUse = { state: 'none', reusedTokens: 0, prefilledTokens: tokens.length }
    const kvUse = routes.priced('onePass', use, tokens.length, m)
    const user = { history: tokens, candidates: rows, queryTime }
    const start = now()
    const run = () => engine.rank([user], deadline.signal)
    const ranked = await deadline.within(
      timed(onStep, 'onePass', run, () => ({ candidates: m, tokens: tokens.length })),
    )
    if (ranked === undefined) return NOTHING
    const [logits = new Float32Array(0)] = ranked
    return { kv: kvUse, logits, scored: m, microBatchMs: [micros(now() - start)], historyMs: 0 }
  }

  const cached = async (request: ToScore): Promise<Scored> => {
    const { user, history, rows, queryTime, deadline, epoch, onStep } = request
    const { signal } = deadline
    const start = now()
    const obtained = await deadline.within(
      routes.isUnkept(history)
        ? kv.prefill(history.tokens, signal, onStep)
        : kv.obtain(user, history.tokens, signal, epoch, onStep),
    )
    if (obtained === undefined) return NOTHING
    const { lease, ...use } = obtained
    try {
      const historyMs = now() - start
      const m = rows.length / slots
      const kvUse = routes.priced(decisionOf(use), use, history.tokens.length, m)
      const logits = new Float32Array(m * tasks)
      let scored = 0
      const microBatchMs: number[] = []
      for (const { start: from, end } of planMicroBatches(m, microBatchSize)) {
        if (deadline.isOver(scored)) break
        const batch = rows.subarray(from * slots, end * slots)
        const batchStart = now()
        const run = () => engine.score(lease.handle, batch, queryTime, signal)
        const some = await deadline.within(
          timed(onStep, 'score', run, () => ({ candidates: end - from })),
        )
        if (some === undefined) break
        logits.set(some, from * tasks)
        scored = end
        microBatchMs.push(micros(now() - batchStart))
      }
      const done = logits.subarray(0, scored * tasks)
      return { kv: kvUse, logits: done, scored, microBatchMs, historyMs }
    } finally {
      lease.done()
    }
  }

  /** The way that should cost less. @throws {RankError} DEADLINE_EXCEEDED, CANCELLED, WORKER_CRASHED */
  return async (request: ToScore): Promise<Scored> => {
    const { user, history, rows, deadline } = request
    const way = routes.isOnePass(user, history, rows.length / slots) ? onePass : cached
    return deadline.isOver(0) ? NOTHING : way(request)
  }
}
