import type { Manifest } from '../../manifest.js'
import { zeroTokens } from '../../tokens.js'
import type { Engine, RankUser, WarmUp } from '../engine.js'
import { largestBatch } from './batch-limit.js'

/** Requests of the burst that the batch limit is measured by. */
const BURST = 64
/** Runs that begin together need not be at their largest together. */
const FILL_ROUNDS = 3

type Runs = Pick<Engine, 'prefill' | 'score' | 'rank' | 'release'>

/** Every history length against every number of candidates, one after the other. */
export async function runShapes(
  engine: Runs,
  { embedding: { slots } }: Manifest,
  { historyTokens, candidates }: WarmUp,
): Promise<void> {
  for (const n of historyTokens) {
    const handle = await engine.prefill(zeroTokens(n, slots))
    for (const m of candidates) await engine.score(handle, new Int32Array(m * slots), 0)
    engine.release(handle)
  }
}

/** Milliseconds for requests without events, as one-pass ranking gets them, that come at once. */
export async function burst(
  rank: (user: RankUser) => Promise<unknown>,
  { embedding: { slots } }: Manifest,
  shapes: WarmUp,
): Promise<number> {
  const history = zeroTokens(Math.min(...shapes.historyTokens), slots)
  const candidates = new Int32Array(Math.ceil(Math.max(...shapes.candidates) / 2) * slots)
  const start = performance.now()
  const user = { history, candidates, queryTime: 0 }
  await Promise.all(Array.from({ length: BURST }, () => rank(user)))
  return performance.now() - start
}

/**
 * The largest runs, as many at once as ever are: the sessions' memory has its final size before the
 * first request, or there is not enough of it.
 */
export async function fillArenas(
  engine: Runs,
  manifest: Manifest,
  { historyTokens, candidates }: WarmUp,
  { workers, batchLimit }: { readonly workers: number; readonly batchLimit: number },
): Promise<void> {
  const { slots } = manifest.embedding
  const history = zeroTokens(Math.max(...historyTokens), slots)
  const rows = new Int32Array(Math.max(...candidates) * slots)
  const user = { history, candidates: rows, queryTime: 0 }
  const largest = Math.max(1, largestBatch(manifest, user))
  const users = Array<RankUser>(Math.min(batchLimit, largest)).fill(user)
  const atOnce = <T>(work: () => Promise<T>) => Promise.all(Array.from({ length: workers }, work))
  for (let round = 0; round < FILL_ROUNDS; round++) {
    const handles = await atOnce(() => engine.prefill(history))
    await Promise.all(handles.map((handle) => engine.score(handle, rows, 0)))
    for (const handle of handles) engine.release(handle)
    await atOnce(() => engine.rank(users))
  }
}
