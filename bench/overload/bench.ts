// Three times what the server can do, open loop. Called by bench/run-overload.ts.
import { fork } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { eventLoopP99Ms, scrape, startServer } from '../load.js'
import { median, quantile } from '../stats.js'
import type { Order, Phase, Report, Sample } from './generate.js'

/** Of every request. */
export const DEADLINE_MS = 250
export const OVERLOAD = 3
/** The load before and behind the overload, of the capacity. */
export const CALM = 0.5
const CALM_SECONDS = 10
const CAPACITY = { kind: 'closed', connections: 8, seconds: 10 } as const
/** Answers are looked at by windows of this length to see when all is well again. */
const WINDOW_SEC = 0.25
/** Well: nothing refused, and the median at most so many times that of before. */
const WELL = 2
const PAGE_BYTES = 4096

export type Second = {
  /** Answers 200 within their deadline, and refusals, by the second that their request was due. */
  readonly good: number
  readonly refused: number
  readonly rssMiB: number
}

export type OverloadResult = Measured & {
  /** p99 of the server's event-loop delay through all of it. */
  readonly eventLoopP99Ms: number
}

type Measured = {
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
  readonly lagP99: number
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
  flags: readonly string[],
  folder: string,
  seconds: number,
  log: (line: string) => void,
): Promise<OverloadResult> {
  const files = readdirSync(folder)
    .sort()
    .map((file) => `${folder}/${file}`)
  const server = await startServer(flags)
  try {
    const order = (phases: readonly Phase[]): Order => ({
      ...{ port: server.port, files, deadlineMs: DEADLINE_MS, phases },
    })
    await generate(order([CAPACITY]))
    const capacity = async () => {
      const [closed = []] = (await generate(order([CAPACITY]))).phases
      const perSecond = closed.filter(isGood).length / CAPACITY.seconds
      log(`capacity ${perSecond.toFixed(0)}/s, p99 ${p99(closed).toFixed(1)} ms`)
      return perSecond
    }
    const first = await capacity()
    const calm = { kind: 'open', perSecond: CALM * first, seconds: CALM_SECONDS } as const
    const perSecond = OVERLOAD * first
    const phases: Phase[] = [calm, { kind: 'open', perSecond, seconds }, calm]
    await scrape(server.port) // forgets the event loop's delays of before
    const memory = watchMemory(server.pid)
    const report = await generate(order(phases))
    const rss = memory.stop()
    const eventLoop = eventLoopP99Ms(await scrape(server.port))
    const result = resultOf(report, [first, await capacity()], seconds, rss)
    return { ...result, eventLoopP99Ms: eventLoop }
  } finally {
    await server.stop()
  }
}

function resultOf(
  { phases, sockets }: Report,
  closed: readonly [number, number],
  seconds: number,
  rss: readonly number[],
): Measured {
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
    lagP99: quantile(
      during.map(([, , dueMs, sentMs]) => dueMs - sentMs),
      0.99,
    ),
    before: { p50: p50(before), p99: p99(before) },
    after: { p50: p50(after), p99: p99(after) },
    recoverySec: recovery(after, WELL * p50(before)),
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
function recovery(samples: readonly Sample[], slowMs: number): number {
  let ill = 0
  for (let w = 0; w * WINDOW_SEC < CALM_SECONDS; w++) {
    const window = samples.filter(([due]) => Math.floor(due / WINDOW_SEC) === w)
    if (window.some((sample) => !isGood(sample)) || p50(window) > slowMs) ill = w + 1
  }
  return ill * WINDOW_SEC
}

function isGood([, status, dueMs]: Sample): boolean {
  return status === 200 && dueMs <= DEADLINE_MS
}

function p50(samples: readonly Sample[]): number {
  return median(samples.map(([, , ms]) => ms))
}

function p99(samples: readonly Sample[]): number {
  return quantile(
    samples.map(([, , ms]) => ms),
    0.99,
  )
}

function generate(order: Order): Promise<Report> {
  const file = fileURLToPath(new URL('./generate.js', import.meta.url))
  return new Promise((resolve, reject) => {
    const child = fork(file, { serialization: 'advanced' })
    child.once('message', (report: Report) => resolve(report))
    child.once('error', reject)
    child.once('exit', (code) => reject(new Error(`the load generator exited with ${code}`)))
    child.send(order)
  })
}

/** Resident memory of a process, MiB, once a second. */
function watchMemory(pid: number) {
  const samples: number[] = []
  const read = () => {
    const pages = Number(readFileSync(`/proc/${pid}/statm`, 'utf8').split(' ')[1])
    samples.push((pages * PAGE_BYTES) / 2 ** 20)
  }
  read()
  const timer = setInterval(read, 1000)
  return {
    stop() {
      clearInterval(timer)
      return samples
    },
  }
}
