// The page's parts on work: arithmetic per second against the GPU's peak, and when kept K/V pays.
import type { HstuConfig } from '../../model/config.js'
import { randomConfig } from '../../model/export/random.js'
import type { Series } from '../chart.js'
import { count, figure, table } from '../markdown.js'
import { LARGEST_RUN } from './latency.js'
import {
  allPoints,
  engineOf,
  OURS,
  type Peer,
  peerPoint,
  pointOf,
  type ShapeLatency,
} from './result.js'
import { SHAPES, stuConfig, usefulFlops } from './shapes.js'

const MLPERF = 'mlperf'
/**
 * Requests per second of one B200 in MLPerf Inference v6.0, DLRMv3, derived: the submissions with
 * eight of them, from 10,007 (Server) to 10,737 (Offline), divided by eight.
 */
const B200_PER_SECOND = { least: 1250, most: 1340 }
/** Floating-point operations of one of its requests as MLCommons gives them, in 1e9. */
const MLPERF_GFLOP = 260
/** Dense fp16 by their data sheets: 2,250 TFLOP/s of a B200, 989 of an H100 or H200. */
const B200_PEAK = 2.3
const REQUESTS_CHARTED = 8

export function workSection(latency: readonly ShapeLatency[], peer: Peer | undefined): string[] {
  const peak = peer?.ceilings.fp16Tflops
  const rows = allPoints(latency).flatMap(({ shape, m }) => {
    const config = configOf(shape.model)
    const point = pointOf(shape, OURS, m)
    if (config === undefined || point === undefined) return []
    const onePass = Math.max(point.rankPerSecond, point.batchedRankPerSecond)
    const row = (what: 'rank' | 'score', perSecond: number) => {
      const flops = usefulFlops(config, what, m)
      return {
        shape: shape.shape,
        m,
        what,
        perSecond,
        flops,
        teraflops: (flops * perSecond) / 1e12,
      }
    }
    return [row('rank', onePass), row('score', point.scorePerSecond)]
  })
  const lines = (of: typeof rows) =>
    table(
      ['shape', 'm', 'what', 'requests/s', 'GFLOP per request', 'TFLOP/s', 'share of peak'],
      of.map(({ shape, m, what, perSecond, flops, teraflops }) => [
        shape,
        count(m),
        what === 'rank' ? 'one pass' : 'score on cached K/V',
        count(perSecond),
        figure(flops / 1e9),
        figure(teraflops),
        peak === undefined ? figure(undefined) : `${((100 * teraflops) / peak).toFixed(1)} %`,
      ]),
    )
  const mlperf = rows.filter(({ shape }) => shape === MLPERF)
  const onePass = mlperf.find(({ what }) => what === 'rank')
  const { least, most } = B200_PER_SECOND
  const times = (perSecond: number) => (perSecond / (onePass?.perSecond ?? Number.NaN)).toFixed(1)
  const perPeak = (perSecond: number) => times(perSecond / B200_PEAK)
  return [
    "## MLPerf's shape, and arithmetic per second",
    '',
    `Requests per second of one GPU with eight in flight (one pass: or in batches of four, whichever is more), ${OURS}, times the operations that a request cannot do without: linear layers of every token, half of the causal square, every candidate against the history and itself.${peak === undefined ? '' : ` Peak: a square fp16 product of 8,192 on the same machine, ${figure(peak)} TFLOP/s.`}`,
    '',
    ...(onePass === undefined
      ? []
      : [
          ...lines(mlperf),
          '',
          `MLPerf Inference v6.0 has DLRMv3 at about 6,400 to 7,000 history tokens and 2,048 candidates; its submissions with eight B200 come to ${count(least)} to ${count(most)} requests per second and GPU (derived: their Server and Offline results divided by eight), with the sparse part and without cached K/V: ${times(least)} to ${times(most)} times our one pass. A B200's peak is ${B200_PEAK} times this GPU's, which leaves ${perPeak(least)} to ${perPeak(most)} times. MLCommons gives about ${MLPERF_GFLOP} GFLOP for one of its requests, ${(MLPERF_GFLOP / (onePass.flops / 1e9)).toFixed(2)} of ours.`,
          '',
        ]),
    ...lines(rows.filter(({ shape }) => shape !== MLPERF)),
    '',
  ]
}

/** The model of a shape as it was exported; none for the demo's, which has no shape here. */
function configOf(model: string): HstuConfig | undefined {
  return SHAPES.flatMap((shape) => [stuConfig(shape), randomConfig(shape)]).find(
    ({ name }) => name === model,
  )
}

export type Costs = {
  readonly prefillMs: number
  readonly scoreMs: number
  readonly rankMs: number
}

/**
 * How often a user must come back until a prefill and a score per request cost no more than a pass
 * per request: 0 where K/V costs nothing extra, Infinity where a hit is no cheaper than a pass.
 */
export function returnsToPay({ prefillMs, scoreMs, rankMs }: Costs): number {
  const extra = prefillMs + scoreMs - rankMs
  if (extra <= 0) return 0
  return rankMs > scoreMs ? extra / (rankMs - scoreMs) : Number.POSITIVE_INFINITY
}

/** What the service does, were this request its micro-batch. */
function policyOf(returns: number, m: number): string {
  if (m > LARGEST_RUN) return 'K/V, several runs'
  return returns <= 1 ? 'keeps K/V' : 'one pass'
}

export function keepSection(latency: readonly ShapeLatency[], peer: Peer | undefined): string[] {
  return [
    '## When kept K/V pays',
    '',
    `Milliseconds of one call at a time at full history, ${OURS}, users in turns. A miss that keeps K/V is a prefill and a score; one pass keeps nothing. The returns that pay are (prefill + score - one pass) / (one pass - score). The policy measures the same at start-up, at b candidates (here: as if b were m), and keeps K/V where one return pays; else a request that fits one run goes in one pass. Meta's encode computes the same K/V under a CUDA graph.`,
    '',
    ...table(
      [
        'shape',
        'm',
        'hit: score',
        'prefill',
        'miss: prefill + score',
        'one pass',
        'returns that pay',
        'policy',
        'Meta, encode',
      ],
      allPoints(latency).flatMap(({ shape, m }) => {
        const costs = costsOf(shape, m)
        if (costs === undefined) return []
        const { prefillMs, scoreMs, rankMs } = costs
        const returns = returnsToPay(costs)
        const encode = peerPoint(peer, {
          shape: shape.shape,
          what: 'encode',
          m: 0,
          route: 'plain',
        })
        return [
          [
            shape.shape,
            count(m),
            ...[scoreMs, prefillMs, prefillMs + scoreMs, rankMs].map(figure),
            returns === Number.POSITIVE_INFINITY ? 'never' : returns.toFixed(2),
            policyOf(returns, m),
            figure(encode?.ioMs),
          ],
        ]
      }),
    ),
    '',
    '![cost with kept K/V over one pass each time](gpu-kept-kv.svg)',
    '',
  ]
}

/** Per shape, at its largest m of one run: cost of n requests with kept K/V over n passes. */
export function keptKvSeries(latency: readonly ShapeLatency[]): Series[] {
  return latency.flatMap((shape) => {
    const sizes = (shape.engines[0]?.points ?? []).map(({ m }) => m).filter((m) => m <= LARGEST_RUN)
    const m = Math.max(...sizes)
    const costs = costsOf(shape, m)
    if (costs === undefined) return []
    const { prefillMs, scoreMs, rankMs } = costs
    const points = Array.from({ length: REQUESTS_CHARTED }, (_, i) => {
      const requests = i + 1
      return [requests, (prefillMs + requests * scoreMs) / (requests * rankMs)] as const
    })
    return [{ name: `${shape.shape}, m = ${count(m)}`, points }]
  })
}

function costsOf(shape: ShapeLatency, m: number): Costs | undefined {
  const engine = engineOf(shape, OURS)
  const point = pointOf(shape, OURS, m)
  if (engine === undefined || point === undefined) return undefined
  return { prefillMs: engine.prefill.ms, scoreMs: point.score.ms, rankMs: point.rank.ms }
}
