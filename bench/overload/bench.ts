// Three times what the server can do, open loop. Called by bench/run-overload.ts.
import { eventLoopP99Ms, scrape, startServer } from '../load.js'
import { figure } from '../markdown.js'
import { watchRss } from '../rss.js'
import { median, quantile } from '../stats.js'
import type { Phase, Report, Sample } from './generate.js'
import { generateLoad } from './load-generators.js'
import type { Shape } from './shapes.js'

export const OVERLOAD = 3
/** The load before and behind the overload, of the capacity. */
export const CALM = 0.5
const CALM_SECONDS = 10
/** Of a closed loop: with more of them it would be the capacity for what is cheap enough not to be refused. */
const MOST_REFUSED = 0.02
/** So much less than the best: with yet more of them it would not get more again. */
const LESS = 0.9
const CAPACITY_SECONDS = 8
/** Answers are looked at by windows of this length to see when all is well again. */
const WINDOW_SEC = 0.25
/** Well: nothing refused, and the median at most so many times that of before. */
const WELL = 2

export type Second = {
  /** Answers 200 within their deadline, and refusals, by the second that their request was due. */
  readonly good: number
  readonly refused: number
  readonly rssMiB: number
}

export type OverloadResult = Measured & {
  /** p99 of the server's event-loop delay through all of it. */
  readonly eventLoopP99Ms: number
  /** 429 by what they were for, through all of it. */
  readonly refusals: { readonly [reason: string]: number }
  readonly what: string
  readonly deadlineMs: number
} & Omit<Setup, 'connections'>

/** As taskset has them: `0-3`; all where not given. */
export type Cpus = { readonly server?: string | undefined; readonly load?: string | undefined }

/** How it is served, and by how many processes it is asked for. */
export type Setup = {
  readonly cpus: Cpus
  readonly generators: number
  /** What the server can do is the best of these, closed loop. */
  readonly connections: readonly number[]
  /** Of `peregrine serve`, beside the bundle. */
  readonly flags: readonly string[]
}

type Measured = {
  /** Connections at which the closed loop did most. */
  readonly connections: number
  /** Closed loop, answers in time: before all else, behind it, and their mean. */
  readonly closed: readonly [before: number, after: number]
  readonly capacityPerSecond: number
  readonly offeredPerSecond: number
  readonly seconds: number
  readonly good: number
  readonly late: number
  readonly refused: number
  /** 504, though let in. */
  readonly expired: number
  readonly failed: number
  /** Goodput over capacity. */
  readonly share: number
  readonly accepted: { readonly p50: number; readonly p99: number }
  /** From the request's last byte. */
  readonly refusal: { readonly p50: number; readonly p99: number }
  /** How late the generator itself was with its requests. */
  readonly lag: { readonly p50: number; readonly p99: number; readonly most: number }
  readonly before: { readonly p50: number; readonly p99: number }
  readonly after: { readonly p50: number; readonly p99: number }
  /** From the end of the overload until all is well and stays so. */
  readonly recoverySec: number
  readonly sockets: number
  readonly rssMiB: {
    readonly before: number
    readonly early: number
    readonly late: number
    readonly after: number
  }
  readonly timeline: readonly Second[]
}

export async function benchOverload(
  { what, bundle, files, deadlineMs, prepare }: Shape,
  setup: Setup,
  seconds: number,
  log: (line: string) => void,
): Promise<OverloadResult> {
  // Without the page, whose files lie outside of dist.
  const { cpus, generators, connections, flags } = setup
  const all = ['--bundle', bundle, '--no-playground', ...flags]
  const server = await startServer(all, undefined, cpus.server)
  try {
    await prepare?.(server.port)
    const run = (...phases: readonly Phase[]) => {
      const polls = cpus.load !== undefined
      const order = { port: server.port, files, deadlineMs, polls, phases }
      return generateLoad(order, generators, cpus.load)
    }
    const isGood = goodBy(deadlineMs)
    const capacity = async (callers: number) => {
      const closed = await run({ kind: 'closed', connections: callers, seconds: CAPACITY_SECONDS })
      const [samples = []] = closed.phases
      const perSecond = samples.filter(isGood).length / CAPACITY_SECONDS
      const refused = samples.filter(([, status]) => status !== 200).length / samples.length
      const [rate, percent] = [figure(perSecond), figure(100 * refused)]
      log(
        `${callers} connections: ${rate}/s, p99 ${p99(samples).toFixed(1)} ms, ${percent} % not answered`,
      )
      return { connections: callers, perSecond, refused }
    }
    await capacity(connections[0] ?? 1) // warms up
    let best = { connections: 0, perSecond: 0 }
    for (const some of connections) {
      const next = await capacity(some)
      if (next.refused > MOST_REFUSED && best.perSecond > 0) break
      if (next.perSecond > best.perSecond) best = next
      else if (next.perSecond < LESS * best.perSecond) break
    }
    const first = best.perSecond
    const calm = { kind: 'open', perSecond: CALM * first, seconds: CALM_SECONDS } as const
    const perSecond = OVERLOAD * first
    // What was counted before counts for nothing; the scrape also forgets the event loop's delays.
    const earlier = refusalsIn(await scrape(server.port))
    const memory = watchRss(server.pid)
    const report = await run(calm, { kind: 'open', perSecond, seconds }, calm)
    const rss = memory.stop()
    const metrics = await scrape(server.port)
    const refusals = Object.entries(refusalsIn(metrics)).map(
      ([reason, count]) => [reason, count - (earlier[reason] ?? 0)] as const,
    )
    const after = await capacity(best.connections)
    return {
      ...resultOf(report, deadlineMs, [first, after.perSecond], seconds, rss),
      ...{ what, deadlineMs, cpus, generators, flags, connections: best.connections },
      eventLoopP99Ms: eventLoopP99Ms(metrics),
      refusals: Object.fromEntries(refusals),
    }
  } finally {
    await server.stop()
  }
}

/** The server's count of 429 by reason. */
function refusalsIn(metrics: string): { readonly [reason: string]: number } {
  const counts: { [reason: string]: number } = {}
  for (const [, reason = '', count] of metrics.matchAll(
    /^peregrine_refusals_total\{reason="(\w+)"[^}]*\} (\d+)/gm,
  )) {
    counts[reason] = (counts[reason] ?? 0) + Number(count)
  }
  return counts
}

function resultOf(
  { phases, sockets }: Report,
  deadlineMs: number,
  closed: readonly [number, number],
  seconds: number,
  rss: readonly number[],
): Omit<Measured, 'connections'> {
  const isGood = goodBy(deadlineMs)
  const capacityPerSecond = (closed[0] + closed[1]) / 2
  const [before = [], during = [], after = []] = phases
  const accepted = during.filter(([, status]) => status === 200)
  const refused = during.filter(([, status]) => status === 429)
  const good = during.filter(isGood).length
  const count = (wanted: number) => during.filter(([, status]) => status === wanted).length
  const meanOf = (from: number, to: number) => {
    const part = rss.slice(Math.round(from), Math.max(Math.round(to), Math.round(from) + 1))
    return part.reduce((sum, mib) => sum + mib, 0) / Math.max(1, part.length)
  }
  const end = CALM_SECONDS + seconds
  return {
    closed,
    capacityPerSecond,
    offeredPerSecond: during.length / seconds,
    seconds,
    good,
    late: accepted.length - good,
    refused: refused.length,
    expired: count(504),
    failed: during.length - accepted.length - refused.length - count(504),
    share: good / seconds / capacityPerSecond,
    accepted: { p50: p50(accepted), p99: p99(accepted) },
    refusal: {
      p50: median(refused.map(([, , , ms]) => ms)),
      p99: quantile(
        refused.map(([, , , ms]) => ms),
        0.99,
      ),
    },
    lag: lagOf(during),
    before: { p50: p50(before), p99: p99(before) },
    after: { p50: p50(after), p99: p99(after) },
    recoverySec: recovery(after, isGood, WELL * p50(before)),
    sockets,
    rssMiB: {
      before: meanOf(0, CALM_SECONDS),
      early: meanOf(CALM_SECONDS + seconds / 6, CALM_SECONDS + seconds / 3),
      late: meanOf(end - seconds / 6, end),
      after: meanOf(end + CALM_SECONDS / 2, rss.length),
    },
    timeline: Array.from({ length: Math.floor(end + CALM_SECONDS) }, (_, second) => {
      const [samples, start] =
        second < CALM_SECONDS ? [before, 0] : second < end ? [during, CALM_SECONDS] : [after, end]
      const own = samples.filter(([due]) => Math.floor(due) === second - start)
      return {
        good: own.filter(isGood).length,
        refused: own.filter(([, status]) => status === 429).length,
        rssMiB: rss[second] ?? Number.NaN,
      }
    }),
  }
}

/** Seconds until the end of the last window with something refused, late or slower than `slowMs`. */
function recovery(
  samples: readonly Sample[],
  isGood: (sample: Sample) => boolean,
  slowMs: number,
): number {
  let ill = 0
  for (let w = 0; w * WINDOW_SEC < CALM_SECONDS; w++) {
    const window = samples.filter(([due]) => Math.floor(due / WINDOW_SEC) === w)
    if (window.some((sample) => !isGood(sample)) || p50(window) > slowMs) ill = w + 1
  }
  return ill * WINDOW_SEC
}

function goodBy(deadlineMs: number): (sample: Sample) => boolean {
  return ([, status, dueMs]) => status === 200 && dueMs <= deadlineMs
}

function p50(samples: readonly Sample[]): number {
  return median(answerTimes(samples))
}

function p99(samples: readonly Sample[]): number {
  return quantile(answerTimes(samples), 0.99)
}

function answerTimes(samples: readonly Sample[]): number[] {
  return samples.map(([, , dueMs]) => dueMs).filter(Number.isFinite)
}

function lagOf(samples: readonly Sample[]): Measured['lag'] {
  // A request without an answer says nothing of when it was sent.
  const lags = samples.map(([, , dueMs, sentMs]) => dueMs - sentMs).filter(Number.isFinite)
  return { p50: median(lags), p99: quantile(lags, 0.99), most: quantile(lags, 1) }
}
