// Cost of one request at the paper's ranking shape: against m, b and n, by cache state, one
// candidate at a time, and beside PyTorch. Called by bench/run.ts.
import { execFileSync } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'
import { calibrate } from '../falcon/calibrate.js'
import { createEngine } from '../model/engine/create.js'
import { PAPER_SHAPE } from '../model/export/random.js'
import type { Bundle } from '../model/manifest.js'
import { type LinearFit, linearFit, median, medianMs } from './stats.js'
import { createLatencyRanker, randomRequest } from './workload.js'

const M_SWEEP = [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384]
const B_SWEEP = [16, 32, 64, 128, 256, 512, 1024]
const N_SWEEP = [128, 256, 512, 1024, 2048]
const STATE_SWEEP = [256, 1024]
/** Candidates that were really ranked by a forward pass each; the rest is multiplied. */
const FORWARD_SAMPLE = 5
const SWEEP_ROUNDS = 9
const PEER_ROUNDS = 2
const FULL_EVENTS = (PAPER_SHAPE.maxTokens - 2) / 2
const M_COMPARED = 1024

export type Point = { readonly x: number; readonly ms: number }

type PeerTimes = {
  readonly encodeMs: number
  /** M_COMPARED candidates, by micro-batch size. */
  readonly scoreMs: Readonly<Record<string, number>>
}
export type PeerResult = {
  readonly torch: string
  readonly fp32: PeerTimes
  readonly bf16: PeerTimes
}

export type FalconResult = {
  readonly threads: number
  readonly microBatchSize: number
  readonly byM: readonly Point[]
  readonly fit: LinearFit
  /** Cost per candidate at the largest m over that at 1,024. */
  readonly perCandidateRatio: number
  readonly byB: readonly Point[]
  readonly byN: readonly Point[]
  readonly byState: readonly {
    readonly m: number
    readonly hitMs: number
    readonly appendMs: number
    readonly missMs: number
  }[]
  /** All of M_COMPARED candidates by single-candidate runs on cached K/V. */
  readonly oneByOneMs: number
  /** The same by one forward pass over the whole history per candidate, extrapolated from a sample. */
  readonly forwardEachMs: number
  /** One per round; empty when no PyTorch was given. */
  readonly peers: readonly PeerResult[]
  /** M_COMPARED cached candidates, before, between and after the peer's rounds. */
  readonly comparedMs: readonly number[]
}

/** `python`: an interpreter that has PyTorch, or undefined to leave the peer out. */
export async function benchFalcon(
  bundle: Bundle,
  python: string | undefined,
  log: (line: string) => void,
): Promise<FalconResult> {
  const threads = availableParallelism()
  const microBatchSize = await calibrated(bundle, threads)
  log(`b = ${microBatchSize} by calibration, 1 worker x ${threads} threads`)
  const ranker = await createLatencyRanker(bundle, threads, microBatchSize)
  try {
    const cached = (m: number, events = FULL_EVENTS) => {
      const request = randomRequest(`n${events}`, events, m)
      return () => ranker.rank(request, { topK: 100 })
    }
    const compared = () => medianMs(cached(M_COMPARED), 9, 2)
    const comparedMs = [await compared()]
    const peers: PeerResult[] = []
    for (let round = 0; python !== undefined && round < PEER_ROUNDS; round++) {
      peers.push(runPeer(python, threads))
      comparedMs.push(await compared())
    }
    log(
      `m = ${M_COMPARED} cached, around the peer: ${comparedMs.map((x) => x.toFixed(1)).join(', ')} ms`,
    )
    const byM = await inRounds(M_SWEEP, (m) => cached(m))
    for (const { x, ms } of byM) log(`m = ${x}: ${ms.toFixed(1)} ms`)
    const byN = await inRounds(N_SWEEP, (n) => cached(M_COMPARED, (n - 2) / 2))
    const byB: Point[] = []
    for (const b of [...B_SWEEP, 1]) {
      const other = await createLatencyRanker(bundle, threads, b)
      const request = randomRequest('b', FULL_EVENTS, M_COMPARED)
      byB.push({ x: b, ms: await medianMs(() => other.rank(request, {}), b === 1 ? 1 : 5) })
      await other.close()
      log(`b = ${b}: ${byB.at(-1)?.ms.toFixed(1)} ms`)
    }
    const byState = []
    for (const m of STATE_SWEEP) byState.push(await statesAt(m))
    return {
      threads,
      microBatchSize,
      byM,
      fit: linearFit(byM.map(({ x, ms }) => ({ x, y: ms }))),
      perCandidateRatio: perCandidate(byM, M_SWEEP.at(-1) ?? 0) / perCandidate(byM, M_COMPARED),
      byB: byB.filter(({ x }) => x !== 1),
      byN,
      byState,
      oneByOneMs: byB.find(({ x }) => x === 1)?.ms ?? Number.NaN,
      forwardEachMs: await forwardEach(bundle, threads),
      peers,
      comparedMs,
    }
  } finally {
    await ranker.close()
  }

  /** Fresh users: a miss; the same with one event more: an append; the same again: a hit. */
  async function statesAt(m: number) {
    let user = 0
    const short = () => randomRequest(`state-${m}-${user}`, FULL_EVENTS - 1, m)
    const long = () => {
      const { histories, ...rest } = randomRequest(`state-${m}-${user}`, FULL_EVENTS - 1, m)
      const [history = []] = histories
      const last = { item: '1', time: rest.time, actions: [] }
      return { ...rest, time: rest.time + 60, histories: [[...history, last]] }
    }
    const times: Record<'missMs' | 'appendMs' | 'hitMs', number[]> = {
      missMs: [],
      appendMs: [],
      hitMs: [],
    }
    for (user = 0; user < 5; user++) {
      times.missMs.push(await medianMs(() => ranker.rank(short(), { topK: 100 }), 1, 0))
      times.appendMs.push(await medianMs(() => ranker.rank(long(), { topK: 100 }), 1, 0))
      times.hitMs.push(await medianMs(() => ranker.rank(long(), { topK: 100 }), 1, 0))
    }
    const result = {
      m,
      hitMs: median(times.hitMs),
      appendMs: median(times.appendMs),
      missMs: median(times.missMs),
    }
    log(
      `m = ${m}: hit ${result.hitMs.toFixed(1)}, append ${result.appendMs.toFixed(1)}, miss ${result.missMs.toFixed(1)} ms`,
    )
    return result
  }
}

/**
 * Median time of `run(x)` for every x, measured in rounds over all of them: what disturbs the machine
 * for a while then disturbs every x alike.
 */
async function inRounds(
  xs: readonly number[],
  run: (x: number) => () => Promise<unknown>,
): Promise<Point[]> {
  const samples = new Map(xs.map((x): [number, number[]] => [x, []]))
  for (let round = -1; round < SWEEP_ROUNDS; round++) {
    for (const [x, times] of samples) {
      const ms = await medianMs(run(x), 1, 0)
      if (round >= 0) times.push(ms)
    }
  }
  return [...samples].map(([x, times]) => ({ x, ms: median(times) }))
}

function perCandidate(points: readonly Point[], m: number): number {
  return (points.find(({ x }) => x === m)?.ms ?? Number.NaN) / m
}

async function calibrated(bundle: Bundle, threads: number): Promise<number> {
  const engine = await createEngine({ bundle, workers: 1, threadsPerWorker: threads })
  const { microBatchSize } = await calibrate(engine, bundle.manifest)
  await engine.close()
  return microBatchSize
}

/** Milliseconds of M_COMPARED forward passes, each over the history and one candidate. */
async function forwardEach(bundle: Bundle, threads: number): Promise<number> {
  const ranker = await createLatencyRanker(bundle, threads, 1)
  let user = 0
  const one = () => ranker.rank(randomRequest(`forward-${user++}`, FULL_EVENTS, 1), {})
  const ms = await medianMs(one, FORWARD_SAMPLE)
  await ranker.close()
  return ms * M_COMPARED
}

function runPeer(python: string, threads: number): PeerResult {
  const script = fileURLToPath(new URL('../../bench/peers/torch_cpu.py', import.meta.url))
  return JSON.parse(execFileSync(python, [script, String(threads)], { encoding: 'utf8' }))
}
