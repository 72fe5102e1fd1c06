// The demo model for half an hour at 70 % of what it can do, while users come and go and models are
// replaced. Called by bench/run-soak.ts.
import { readdirSync, readlinkSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { createRandom } from '../../model/random.js'
import { requestFiles } from '../http.js'
import { scrape, startServer } from '../load.js'
import { createRawClient } from '../overload/client.js'
import { rssMiB } from '../rss.js'
import { quantile, slopeOf } from '../stats.js'
import { putVersion } from '../versions.js'
import { SEED } from '../workload.js'
import { createSoakTraffic, type Kind } from './traffic.js'

/** Share of the closed-loop capacity. */
export const LOAD_SHARE = 0.7
const CAPACITY = { connections: 8, seconds: 10 }
export const SAMPLE_SEC = 10
/** Models are replaced five times. */
const SPELLS = 6
const RAMP_SEC = 10
/** So small that it is full, and turns over, long before the half that counts. */
const KV_BYTES = 64 * 2 ** 20
const IDLE_WITHIN_SEC = 30

/** What the server holds, every ten seconds, and what it did in them. */
export type SoakSample = {
  readonly second: number
  readonly rssMiB: number
  readonly heapMiB: number
  readonly externalMiB: number
  readonly descriptors: number
  readonly sockets: number
  readonly threads: number
  readonly activeResources: number
  readonly kvEntries: number
  readonly kvMiB: number
  readonly storedUsers: number
  readonly gcSeconds: number
  readonly answers: number
  readonly p50: number
  readonly p99: number
}

export type SoakResult = {
  readonly capacityPerSecond: number
  readonly perSecond: number
  readonly minutes: number
  readonly reloadSec: number
  readonly reloads: number
  /** Answers by kind of request and status; 0 = none came. */
  readonly answers: { readonly [kind: string]: { readonly [status: string]: number } }
  /** Of resident memory in the second half, MiB per hour, with its 95 % confidence interval. */
  readonly slope: { readonly slope: number; readonly plusMinus: number }
  readonly samples: readonly SoakSample[]
  /** Before the first request, and after the last once its connections were closed. */
  readonly idle: { readonly before: Handles; readonly after: Handles }
}

/** What a process that leaks would have more and more of. */
export type Handles = Pick<SoakSample, 'descriptors' | 'sockets' | 'threads' | 'activeResources'>

export async function benchSoak(
  bundleFolder: string,
  folder: string,
  minutes: number,
  log: (line: string) => void,
): Promise<SoakResult> {
  const place = `${folder}/demo`
  putVersion(bundleFolder, place, 0)
  const server = await startServer([
    ...['--models-dir', folder, '--promote-ramp-sec', String(RAMP_SEC)],
    ...['--kv-bytes', String(KV_BYTES), '--log-level', 'error'],
  ])
  const { port, pid } = server
  const before = handlesOf(await held(port, pid))
  const client = createRawClient(port)
  const random = createRandom(SEED)
  const traffic = createSoakTraffic(requestFiles('demo/kuairand/requests'), random)
  const answers: { [kind: string]: { [status: string]: number } } = {}
  let latencies: number[] = []
  const one = async (second: number, dueAt: number): Promise<number> => {
    const { kind, bytes } = traffic.next(second)
    const { status } = await client.send(bytes).catch(() => ({ status: 0 }))
    note(answers, kind, status)
    if (kind === 'rank' && status === 200) latencies.push(performance.now() - dueAt)
    return status
  }
  try {
    const capacityPerSecond = await capacity(one)
    const perSecond = LOAD_SHARE * capacityPerSecond
    log(`capacity ${capacityPerSecond.toFixed(0)}/s, load ${perSecond.toFixed(0)}/s`)
    for (const kind of Object.keys(answers)) delete answers[kind]
    const start = performance.now()
    const secondNow = () => (performance.now() - start) / 1000
    const seconds = 60 * minutes
    const samples: SoakSample[] = []
    const reloadSec = SAMPLE_SEC * Math.round(seconds / SPELLS / SAMPLE_SEC)
    let reloads = 0
    const watch = async () => {
      for (let at = SAMPLE_SEC; at <= seconds; at += SAMPLE_SEC) {
        await delay(Math.max(0, 1000 * (at - secondNow())))
        const taken = latencies
        latencies = []
        const sample = { ...(await held(port, pid)), ...summaryOf(taken), second: at }
        samples.push(sample)
        if (at % 60 === 0) log(`${at / 60} min: ${lineOf(sample)}`)
        if (at % reloadSec !== 0 || at === seconds) continue
        putVersion(bundleFolder, place, ++reloads)
      }
    }
    const load = async () => {
      const pending = new Set<Promise<number>>()
      for (let due = 0; ; ) {
        due += -Math.log(1 - random()) / perSecond
        if (due >= seconds) break
        const waitMs = 1000 * (due - secondNow())
        if (waitMs > 0) await delay(waitMs)
        const sent = one(due, start + 1000 * due)
        pending.add(sent)
        void sent.then(() => pending.delete(sent))
      }
      await Promise.all(pending)
    }
    await Promise.all([load(), watch()])
    client.close()
    const after = await idle(port, pid, before.sockets)
    log(`descriptors ${before.descriptors} before, ${after.descriptors} after`)
    const late = samples.slice(Math.floor(samples.length / 2))
    const slope = slopeOf(late.map(({ second, rssMiB: y }) => ({ x: second / 3600, y })))
    return {
      ...{ capacityPerSecond, perSecond, minutes, reloadSec, reloads },
      ...{ answers, slope, samples, idle: { before, after } },
    }
  } finally {
    client.close()
    await server.stop()
  }
}

/** What is held once the server has noticed that nobody is connected any more, or did not in time. */
async function idle(port: number, pid: number, sockets: number): Promise<Handles> {
  const end = performance.now() + 1000 * IDLE_WITHIN_SEC
  for (;;) {
    const now = handlesOf(await held(port, pid))
    if (now.sockets <= sockets || performance.now() > end) return now
    await delay(250)
  }
}

function handlesOf({ descriptors, sockets, threads, activeResources }: Handles): Handles {
  return { descriptors, sockets, threads, activeResources }
}

/** Good answers per second when a few connections each wait for theirs. */
async function capacity(one: (second: number, dueAt: number) => Promise<number>): Promise<number> {
  const end = performance.now() + 1000 * CAPACITY.seconds
  let good = 0
  const caller = async () => {
    for (let now = performance.now(); now < end; now = performance.now()) {
      const status = await one(0, now)
      if (status >= 200 && status < 300) good++
    }
  }
  await Promise.all(Array.from({ length: CAPACITY.connections }, caller))
  return good / CAPACITY.seconds
}

function note(
  answers: { [kind: string]: { [status: string]: number } },
  kind: Kind,
  status: number,
): void {
  const own = answers[kind] ?? {}
  answers[kind] = own
  own[status] = (own[status] ?? 0) + 1
}

function summaryOf(latencies: readonly number[]) {
  return {
    answers: latencies.length,
    p50: quantile(latencies, 0.5),
    p99: quantile(latencies, 0.99),
  }
}

/** What the process has, by /proc and by its own metrics. */
async function held(port: number, pid: number) {
  const metrics = await scrape(port)
  /** The sum over all labels. */
  const value = (name: string) =>
    [...metrics.matchAll(new RegExp(`^${name}(?:\\{[^}]*\\})? (\\S+)$`, 'gm'))].reduce(
      (sum, [, text]) => sum + Number(text),
      0,
    )
  const descriptors = readdirSync(`/proc/${pid}/fd`)
  const sockets = descriptors.filter((fd) => linkOf(`/proc/${pid}/fd/${fd}`).startsWith('socket:'))
  return {
    rssMiB: rssMiB(pid),
    heapMiB: value('nodejs_heap_size_used_bytes') / 2 ** 20,
    externalMiB: value('nodejs_external_memory_bytes') / 2 ** 20,
    descriptors: descriptors.length,
    sockets: sockets.length,
    threads: readdirSync(`/proc/${pid}/task`).length,
    activeResources: value('nodejs_active_resources_total'),
    kvEntries: value('peregrine_kv_entries'),
    kvMiB: value('peregrine_kv_bytes') / 2 ** 20,
    storedUsers: value('peregrine_events_users'),
    gcSeconds: value('nodejs_gc_duration_seconds_sum'),
  }
}

function linkOf(path: string): string {
  try {
    return readlinkSync(path)
  } catch {
    // Closed meanwhile.
    return ''
  }
}

function lineOf({ rssMiB: rss, descriptors, threads, kvEntries, p99 }: SoakSample): string {
  return `${rss.toFixed(0)} MiB, ${descriptors} descriptors, ${threads} threads, ${kvEntries} K/V, p99 ${p99.toFixed(1)} ms`
}
