// A server under load while Redis fails, request by request by turns with a server without Redis: what else
// the machine does then falls on both.
import { setTimeout as delay } from 'node:timers/promises'
import { createRanker } from '../../falcon/rank.js'
import { createEngine } from '../../model/engine/create.js'
import type { Bundle } from '../../model/manifest.js'
import { startProxy } from '../../test/proxy.js'
import { startCluster, startRedis } from '../../test/redis.js'
import { capacity, type Server, startServer } from '../load.js'
import { createScope } from '../scope.js'
import { quantile } from '../stats.js'
import { createTraffic, merged, type Outcome, type Traffic } from '../traffic.js'
import { type Bed, FAULTS } from './faults.js'

const SEED = 3
const CALM_MS = 1000
const FAULT_MS = 5000
const RUN_MS = CALM_MS + FAULT_MS + 1000
const ROUNDS = 3
const REPLICAS_MS = 60_000
/** Until K/V is found again, at most. */
const BACK_MS = 30_000
/** Of what a server that computes everything can do. */
const LOAD_SHARE = 0.35
const MOST_PER_SECOND = 40
/** The least that a lookup in vain may cost; on top comes up to what the computing would. */
export const PATIENCE_MS = 5

export type Run = {
  readonly answers: number
  readonly failed: number
  readonly wrong: number
  readonly largestDifference: number
  /** Answers with K/V from Redis, and those of them that computed none. */
  readonly fromRedis: number
  readonly whole: number
  readonly p50: number
  readonly p99: number
  /** p90 of each second from the start. */
  readonly seconds: readonly number[]
}

export type FaultRow = {
  readonly name: string
  readonly fault: Run
  /** The server without Redis, at the same time. */
  readonly plain: Run
  /** From the end of the fault until every user's K/V was found in Redis, longest; null = not in 30 s. */
  readonly backMs: number | null
}

export type FaultsResult = {
  readonly perSecond: number
  readonly rows: readonly FaultRow[]
  /** Over all faults, the healthy Redis left out. */
  readonly all: { readonly fault: Run; readonly plain: Run }
  readonly replicas: Run
  /** Known users' first requests to a new process. */
  readonly restart: Run
}

export async function benchFaults(
  bundle: Bundle,
  log: (line: string) => void,
): Promise<FaultsResult> {
  const engine = await createEngine({ bundle, workers: 1 })
  const oracle = createRanker({ engine, bundle, microBatchSize: 64, maxKvBytes: 1 })
  const traffic = createTraffic((input) => oracle.rank(input, {}), SEED)
  log('computing every answer without a cache')
  await traffic.prepare()
  // A byte of tier 1: every request needs Redis, or computes.
  // Nothing is refused: how long a fault makes anyone wait is what is measured.
  const queue = ['--max-queue-ms', '600000']
  const flags = ['--bundle', bundle.folder, '--micro-batch-size', '64', '--kv-bytes', '1', ...queue]
  const scope = createScope()
  scope.after(() => engine.close())
  const serve = async (...more: string[]) => {
    const server = await startServer([...flags, '--log-level', 'error', ...more])
    scope.after(server.stop)
    return server
  }
  try {
    const redis = await startRedis(scope)
    const proxy = await startProxy(scope, redis.port)
    const bed: Bed = { redis, proxy, version: bundle.manifest.version }
    const plain = await serve()
    const url = `redis://127.0.0.1:${proxy.port}`
    const server = await serve('--redis-url', url)
    const perSecond = await rateFor(plain, traffic)
    log(`${perSecond.toFixed(1)} requests per second`)
    const rows: FaultRow[] = []
    const pooled = { plain: [] as Outcome[], fault: [] as Outcome[] }
    const measure = async (name: string, port: number, inject: () => Promise<void>) => {
      const outcomes: (readonly Outcome[])[] = []
      let backMs: number | null = 0
      for (let round = 0; round < ROUNDS; round++) {
        await untilFromRedis(traffic, port)
        const [outcome, endedAt] = await Promise.all([
          traffic.openLoop([plain.port, port], perSecond, (ms) => ms >= RUN_MS),
          delay(CALM_MS)
            .then(inject)
            .then(() => performance.now()),
        ])
        outcomes.push(outcome)
        const back = await untilFromRedis(traffic, port)
        backMs = back === undefined || backMs === null ? null : Math.max(backMs, back - endedAt)
      }
      const [ofPlain, ofFault] = [0, 1].map((i) => outcomes.flatMap((both) => both[i] ?? []))
      const row = {
        name,
        plain: summary(merged(ofPlain ?? [])),
        fault: summary(merged(ofFault ?? [])),
        backMs,
      }
      if (rows.length > 0) {
        pooled.plain.push(...(ofPlain ?? []))
        pooled.fault.push(...(ofFault ?? []))
      }
      rows.push(row)
      const { fault } = row
      log(
        `${name}: ${fault.answers} answers, ${fault.failed} failed, ${fault.wrong} wrong, p99 ${fault.p99.toFixed(1)} (without Redis ${row.plain.p99.toFixed(1)}) ms`,
      )
    }
    for (const { name, inject } of FAULTS) {
      await measure(name, server.port, () => inject(bed, FAULT_MS))
    }
    const { nodes, url: clusterUrl } = await startCluster(scope)
    const ofCluster = await serve('--redis-url', clusterUrl)
    await measure('a cluster: one of three masters killed', ofCluster.port, async () => {
      await nodes[1]?.kill()
      await delay(FAULT_MS)
      await nodes[1]?.restart()
    })
    const second = await serve('--redis-url', url)
    log('two replicas')
    const ports = [server.port, second.port]
    const replicas = summary(
      merged(await traffic.openLoop(ports, perSecond, (ms) => ms >= REPLICAS_MS)),
    )
    await untilFromRedis(traffic, server.port)
    const anew = await serve('--redis-url', url)
    const restart = summary(await traffic.visit([anew.port]))
    const all = { plain: summary(merged(pooled.plain)), fault: summary(merged(pooled.fault)) }
    return { perSecond, rows, all, replicas, restart }
  } finally {
    await scope.end()
  }
}

/** Requests per second that leave room for the noise of the machine. */
async function rateFor({ port }: Server, traffic: Traffic): Promise<number> {
  const post = async () => {
    await traffic.one(port)
    return 200
  }
  const most = await capacity({ post, close: () => {} }, [''], { connections: 4, seconds: 4 })
  return Math.min(MOST_PER_SECOND, LOAD_SHARE * most)
}

/** When every user's K/V was found in Redis once more; undefined after 30 s. Whatever is wrong then is an error. */
async function untilFromRedis(traffic: Traffic, port: number): Promise<number | undefined> {
  const end = performance.now() + BACK_MS
  const found = new Set<string>()
  while (performance.now() < end) {
    const { samples, failed, wrong } = await traffic.visit([port])
    if (failed + wrong > 0) throw new Error(`after a fault ${failed} failed, ${wrong} were wrong`)
    for (const { user, tier } of samples) {
      if (tier === 2) found.add(user)
    }
    if (found.size === samples.length) return performance.now()
  }
  return undefined
}

function summary({ samples, failed, wrong, largestDifference }: Outcome): Run {
  const ms = samples.map((sample) => sample.ms)
  const last = Math.max(0, ...samples.map(({ dueMs }) => Math.floor(dueMs / 1000)))
  return {
    answers: samples.length,
    ...{ failed, wrong, largestDifference },
    fromRedis: samples.filter(({ tier }) => tier === 2).length,
    whole: samples.filter((one) => one.tier === 2 && one.prefilledTokens === 0).length,
    p50: quantile(ms, 0.5),
    p99: quantile(ms, 0.99),
    seconds: Array.from({ length: last + 1 }, (_, second) =>
      quantile(
        samples.flatMap((one) => (Math.floor(one.dueMs / 1000) === second ? [one.ms] : [])),
        0.9,
      ),
    ),
  }
}
