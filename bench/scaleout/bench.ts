import { setTimeout as delay } from 'node:timers/promises'
import { createRanker } from '../../falcon/rank.js'
import { createEngine } from '../../model/engine/create.js'
import type { Bundle } from '../../model/manifest.js'
import { createScope } from '../scope.js'
import { quantile } from '../stats.js'
import { createTraffic, merged, type Sample } from '../traffic.js'
import { type Moment, scaleOut } from './scenario.js'

const SEED = 4
export const USERS = 24
const SIZE = { users: USERS, leastEvents: 395, mostEvents: 405 }
/** A share of what even a busy machine can do: nearly all are hits in memory. */
const PER_SECOND = 20
const CALM_MS = 8000
export const SLICE_SEC = 2
const SLICE_MS = 1000 * SLICE_SEC
const BY_TURNS_MS = 10_000

/** Shares of the answers by where most of their K/V was. */
export type Shares = { readonly memory: number; readonly redis: number; readonly computed: number }

export type Part = Shares & {
  readonly name: string
  readonly answers: number
  readonly p50: number
  readonly p99: number
}

export type ScaleOutResult = {
  readonly perSecond: number
  readonly seconds: number
  readonly failed: number
  readonly wrong: number
  readonly largestDifference: number
  readonly answers: number
  /** Requests that more than one replica was asked for. */
  readonly passedOn: number
  readonly moments: readonly Moment[]
  /** From one moment to the next. */
  readonly parts: readonly Part[]
  /** The same load by turns at the replicas, past the load balancer. */
  readonly byTurns: Part
  /** One after the other, `SLICE_SEC` each. */
  readonly slices: readonly (Shares & { readonly p50: number; readonly p99: number })[]
}

export async function benchScaleOut(
  bundle: Bundle,
  log: (line: string) => void,
): Promise<ScaleOutResult> {
  const scope = createScope()
  const engine = await createEngine({ bundle, workers: 1 })
  scope.after(() => engine.close())
  const oracle = createRanker({ engine, bundle, microBatchSize: 64, maxKvBytes: 1 })
  const traffic = createTraffic((input) => oracle.rank(input, {}), SEED, SIZE)
  log('computing every answer without a cache')
  await traffic.prepare()
  try {
    const { outcome, moments, passed, ports } = await scaleOut(scope, {
      bundle,
      traffic,
      perSecond: PER_SECOND,
      calm: () => delay(CALM_MS),
      log,
    })
    const byTurns = merged(await traffic.openLoop(ports, PER_SECOND, (ms) => ms >= BY_TURNS_MS))
    const { samples, failed, wrong, largestDifference } = outcome
    const endMs = Math.max(...samples.map(({ dueMs }) => dueMs))
    const between = (fromMs: number, toMs: number) =>
      samples.filter(({ dueMs }) => dueMs >= fromMs && dueMs < toMs)
    const bounds = [{ what: 'all live', atMs: 0 }, ...moments]
    return {
      perSecond: PER_SECOND,
      seconds: endMs / 1000,
      answers: samples.length,
      ...{ failed: failed + byTurns.failed, wrong: wrong + byTurns.wrong, largestDifference },
      passedOn: passed.filter(({ upstream }) => upstream.includes(',')).length,
      moments,
      parts: bounds.map(({ what, atMs }, i) =>
        partOf(what, between(atMs, bounds[i + 1]?.atMs ?? Number.POSITIVE_INFINITY)),
      ),
      byTurns: partOf('by turns, without nginx', byTurns.samples),
      slices: Array.from({ length: Math.ceil(endMs / SLICE_MS) }, (_, i) => {
        const slice = between(SLICE_MS * i, SLICE_MS * (i + 1))
        const { p50, p99, memory, redis, computed } = partOf('', slice)
        return { p50, p99, memory, redis, computed }
      }),
    }
  } finally {
    await scope.end()
  }
}

function partOf(name: string, samples: readonly Sample[]): Part {
  const ms = samples.map((sample) => sample.ms)
  const share = (tier: Sample['tier']) =>
    samples.filter((sample) => sample.tier === tier).length / samples.length
  return {
    ...{ name, answers: samples.length, p50: quantile(ms, 0.5), p99: quantile(ms, 0.99) },
    ...{ memory: share(1), redis: share(2), computed: share(undefined) },
  }
}
