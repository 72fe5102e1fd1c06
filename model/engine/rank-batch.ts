import { writeTimes } from '../tokens.js'
import type { RankUser } from './engine.js'

/** Users of one one-pass run, as the arrays that the graph `rank` takes. */
export type RankBatch = {
  readonly count: number
  /** Of each user, before the padding. */
  readonly candidates: readonly number[]
  /** Tokens of the longest history, and the most candidates: what every user is padded to. At least 1. */
  readonly n: number
  readonly m: number
  /** (count, n, slots) */
  readonly rows: Int32Array
  /** (count, n) */
  readonly actions: Int32Array
  /** (count, n) */
  readonly times: BigInt64Array
  /** (count) */
  readonly lengths: BigInt64Array
  /** (count, m, slots) */
  readonly candidateRows: Int32Array
  /** (count) */
  readonly queryTimes: BigInt64Array
}

export function packUsers(users: readonly RankUser[], slots: number): RankBatch {
  const count = users.length
  // At least one token and one candidate, both padding if need be: ONNX Runtime's matrix product stops
  // the process (SIGFPE) when n is 0.
  const n = Math.max(1, ...users.map(({ history }) => history.length))
  const candidates = users.map((user) => user.candidates.length / slots)
  const m = Math.max(1, ...candidates)
  const rows = new Int32Array(count * n * slots)
  const actions = new Int32Array(count * n)
  const times = new BigInt64Array(count * n)
  const candidateRows = new Int32Array(count * m * slots)
  users.forEach((user, u) => {
    const { history } = user
    rows.set(history.rows, u * n * slots)
    actions.set(history.actions, u * n)
    writeTimes(times, history.times, u * n)
    candidateRows.set(user.candidates, u * m * slots)
  })
  const lengths = BigInt64Array.from(users, ({ history }) => BigInt(history.length))
  const queryTimes = BigInt64Array.from(users, ({ queryTime }) => BigInt(queryTime))
  return { count, candidates, n, m, rows, actions, times, lengths, candidateRows, queryTimes }
}

/** Logits (count, m, tasks) of a batch as (candidates, tasks) of each user, without the padding. */
export function splitLogits(
  logits: Float32Array,
  { count, candidates, m }: RankBatch,
): Float32Array[] {
  const perUser = logits.length / count
  return candidates.map((own, u) => logits.slice(u * perUser, u * perUser + (own * perUser) / m))
}
