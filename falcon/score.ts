import type { Epoch } from '../cache/epochs.js'
import type { UserHash } from '../cache/key.js'
import type { KvCache } from '../cache/kv.js'
import type { Engine } from '../model/engine/engine.js'
import type { History } from '../model/sequence.js'
import type { Deadline } from './deadline.js'
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
}

export type Scored = {
  readonly kv: KvUse
  /** (scored, tasks) */
  readonly logits: Float32Array
  /** Fewer than m only for a partial answer at the deadline. */
  readonly scored: number
  readonly microBatches: number
  readonly historyMs: number
}

/** What a partial answer holds when its deadline passed before anything was scored. */
const NOTHING: Scored = {
  kv: { state: 'none', reusedTokens: 0, prefilledTokens: 0 },
  logits: new Float32Array(0),
  scored: 0,
  microBatches: 0,
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
  const onePass = async ({ history, rows, queryTime, deadline }: ToScore): Promise<Scored> => {
    const { tokens } = history
    const m = rows.length / slots
    const use: KvUse = { state: 'none', reusedTokens: 0, prefilledTokens: tokens.length }
    const kvUse = routes.priced('onePass', use, tokens.length, m)
    const user = { history: tokens, candidates: rows, queryTime }
    const ranked = await deadline.within(engine.rank([user], deadline.signal))
    if (ranked === undefined) return NOTHING
    const [logits = new Float32Array(0)] = ranked
    return { kv: kvUse, logits, scored: m, microBatches: 1, historyMs: 0 }
  }

  const cached = async (request: ToScore): Promise<Scored> => {
    const { user, history, rows, queryTime, deadline, epoch } = request
    const { signal } = deadline
    const start = now()
    const obtained = await deadline.within(
      routes.isUnkept(history)
        ? kv.prefill(history.tokens, signal)
        : kv.obtain(user, history.tokens, signal, epoch),
    )
    if (obtained === undefined) return NOTHING
    const { lease, ...use } = obtained
    try {
      const historyMs = now() - start
      const m = rows.length / slots
      const kvUse = routes.priced(decisionOf(use), use, history.tokens.length, m)
      const logits = new Float32Array(m * tasks)
      let scored = 0
      let microBatches = 0
      for (const { start: from, end } of planMicroBatches(m, microBatchSize)) {
        if (deadline.isOver(scored)) break
        const batch = rows.subarray(from * slots, end * slots)
        const some = await deadline.within(engine.score(lease.handle, batch, queryTime, signal))
        if (some === undefined) break
        logits.set(some, from * tasks)
        scored = end
        microBatches++
      }
      const done = logits.subarray(0, scored * tasks)
      return { kv: kvUse, logits: done, scored, microBatches, historyMs }
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
