// What one run costs on a GPU, by shape and engine: score on cached K/V, prefill, one-pass rank, and how
// many of them finish per second. Called by bench/gpu/run.ts.
import { randomHistory, randomRows, sizesFor } from '../../falcon/calibrate.js'
import { createCapiEngine } from '../../model/engine/capi/engine.js'
import type { Engine, RankUser } from '../../model/engine/engine.js'
import { createNodeEngine } from '../../model/engine/node/pool.js'
import type { Bundle } from '../../model/manifest.js'
import { createRandom } from '../../model/random.js'
import { callsPerSecond, quantile } from '../stats.js'
import { QUERY_TIME } from '../workload.js'

/** Users whose K/V takes turns: no two runs in a row read the same. */
const USERS = 4
const LEAST_RUNS = 9
const MOST_RUNS = 300
/** Users of one explicit batch. */
const BATCH = 4
const IN_FLIGHT = 8
/** The most candidates of one run without kernels: larger requests go in micro-batches of it. */
export const LARGEST_RUN = 2048

export type Timing = { readonly ms: number; readonly p10: number; readonly p90: number }

export type LatencyPoint = {
  readonly m: number
  /** Users take turns. */
  readonly score: Timing
  /** One user again and again. */
  readonly scoreSame: Timing
  readonly rank: Timing
  /** Requests per second with IN_FLIGHT of them at once. */
  readonly scorePerSecond: number
  readonly rankPerSecond: number
  /** The same in explicit batches of BATCH users. */
  readonly batchedRankPerSecond: number
}

export type EngineLatency = {
  readonly engine: string
  readonly prefill: Timing
  readonly points: readonly LatencyPoint[]
  /** One-pass runs of so many users of full length, per user; m is the second largest of the shape. */
  readonly batches: readonly { readonly users: number; readonly msPerUser: number }[]
}

export type CreateEngine = (bundle: Bundle) => Promise<Engine>

/** With a folder of kernel libraries. */
export const WITH_KERNELS = 'capi, graphs, kernels'

/** The engines that are compared, by the names that the report gives them; see `kernelEngines`. */
export const ENGINES: Readonly<Record<string, CreateEngine>> = {
  'capi, graphs': (bundle) => createCapiEngine({ bundle, provider: 'cuda', workers: 4 }),
  'capi, plain': (bundle) => createCapiEngine({ bundle, provider: 'cuda', workers: 4, lanes: 0 }),
  'capi, table on the host': (bundle) =>
    createCapiEngine({ bundle, provider: 'cuda', workers: 4, gpuTableBytes: 0 }),
  node: (bundle) => createNodeEngine({ bundle, provider: 'cuda', workers: 1 }),
  'node x 4': (bundle) => createNodeEngine({ bundle, provider: 'cuda', workers: 4 }),
}

/** The same files with the kernel libraries of `kernels` in place of their functions. */
export function kernelEngines(kernels: string): Readonly<Record<string, CreateEngine>> {
  const options = { provider: 'cuda', workers: 4, kernels } as const
  const checked = (more: object) => async (bundle: Bundle) => {
    let isRegistered = false
    const onEvent = ({ kind }: { readonly kind: string }) => {
      isRegistered ||= kind === 'kernels'
    }
    const engine = await createCapiEngine({ bundle, ...options, ...more, onEvent })
    if (isRegistered) return engine
    await engine.close()
    throw new Error(`no library in ${kernels} fits`)
  }
  return { [WITH_KERNELS]: checked({}), 'capi, plain, kernels': checked({ lanes: 0 }) }
}

/** `candidates`: m of each point. A figure takes about `msPerFigure`, and at least LEAST_RUNS runs. */
export async function benchLatency(
  bundle: Bundle,
  [name, create]: readonly [string, CreateEngine],
  candidates: readonly number[],
  msPerFigure: number,
  log: (line: string) => void,
): Promise<EngineLatency> {
  const engine = await create(bundle)
  try {
    const { manifest } = bundle
    const { maxTokens } = manifest.config
    const random = createRandom(1)
    const largest = Math.min(Math.max(...sizesFor(engine)), Math.max(...candidates))
    await engine.warmUp({ historyTokens: [maxTokens, 2], candidates: [largest] })
    const histories = Array.from({ length: USERS }, () =>
      randomHistory(manifest, maxTokens, random),
    )
    const handles = await Promise.all(histories.map((history) => engine.prefill(history)))
    let turn = 0
    const next = <T>(of: readonly T[]): T => of[turn++ % of.length] as T
    const points: LatencyPoint[] = []
    for (const m of candidates) {
      const rows = randomRows(manifest, m, random)
      const user = (): RankUser => ({
        history: next(histories),
        candidates: rows,
        queryTime: QUERY_TIME,
      })
      const score = (handle = next(handles)) => inRuns(engine, handle, rows, m, largest)
      const rank = () => engine.rank([user()])
      const batched = () => engine.rank(Array.from({ length: BATCH }, user))
      const perSecond = (run: () => Promise<unknown>) =>
        callsPerSecond(
          Array.from({ length: IN_FLIGHT }, () => run),
          msPerFigure,
        )
      const point = {
        m,
        score: await timing(() => score(), msPerFigure),
        scoreSame: await timing(() => score(handles[0]), msPerFigure),
        rank: await timing(rank, msPerFigure),
        scorePerSecond: await perSecond(() => score()),
        rankPerSecond: await perSecond(rank),
        batchedRankPerSecond: BATCH * (await perSecond(batched)),
      }
      points.push(point)
      log(
        `${name} m=${m}: score ${text(point.score)} (same user ${text(point.scoreSame)}), rank ${text(point.rank)}, ${point.scorePerSecond.toFixed(0)} and ${point.rankPerSecond.toFixed(0)}/s (batches of ${BATCH}: ${point.batchedRankPerSecond.toFixed(0)}/s)`,
      )
    }
    const prefill = await timing(
      async () => engine.release(await engine.prefill(next(histories))),
      msPerFigure,
    )
    const m = candidates.at(-2) ?? candidates[0] ?? 1
    const rows = randomRows(manifest, m, random)
    const batches = []
    for (const count of [1, 2, 4, 8]) {
      const users = Array.from({ length: count }, () => ({
        history: next(histories),
        candidates: rows,
        queryTime: QUERY_TIME,
      }))
      const { ms } = await timing(() => engine.rank(users), msPerFigure)
      batches.push({ users: count, msPerUser: ms / count })
    }
    log(
      `${name}: prefill ${text(prefill)}; rank of 1, 2, 4, 8 users, per user: ${batches.map(({ msPerUser }) => msPerUser.toFixed(2)).join(', ')} ms`,
    )
    for (const handle of handles) engine.release(handle)
    return { engine: name, prefill, points, batches }
  } finally {
    await engine.close()
  }
}

/** As the ranking pipeline does: micro-batches of at most `largest` one after the other. */
async function inRuns(
  engine: Engine,
  handle: Parameters<Engine['score']>[0],
  rows: Int32Array,
  m: number,
  largest: number,
): Promise<void> {
  const width = rows.length / m
  for (let start = 0; start < m; start += largest) {
    const part = rows.subarray(start * width, Math.min(m, start + largest) * width)
    await engine.score(handle, part, QUERY_TIME)
  }
}

/** Long runs are repeated less often. */
async function timing(run: () => Promise<unknown>, msPerFigure: number): Promise<Timing> {
  const times: number[] = []
  for (let i = -3; i < MOST_RUNS; i++) {
    const start = performance.now()
    await run()
    const ms = performance.now() - start
    if (i >= 0) times.push(ms)
    if (i >= LEAST_RUNS && ms * i > msPerFigure) break
  }
  return { ms: quantile(times, 0.5), p10: quantile(times, 0.1), p90: quantile(times, 0.9) }
}

function text({ ms, p10, p90 }: Timing): string {
  return `${ms.toFixed(2)} (${p10.toFixed(2)}-${p90.toFixed(2)})`
}
