// Ten versions of the demo model, one after another, in the place of the one before, under an
// open-loop load of real requests. Called by bench/run-reload.ts.
import { setTimeout as pause } from 'node:timers/promises'
import { tempFolder } from '../test/fixtures.js'
import { capacity, createClient, type Latencies, openLoop, startServer, summary } from './load.js'
import { watchRss } from './rss.js'
import { createScope } from './scope.js'
import { median } from './stats.js'
import { putVersion } from './versions.js'

const RELOADS = 10
/** Share of the closed-loop capacity that the open loop asks for: of three replicas one may go, and the others are at 75 %. */
const LOAD_SHARE = 0.5
/** So long because a virtual machine that was idle is faster at first. */
const CAPACITY = { connections: 8, seconds: 30 }
const MOST_SECONDS = 1800
/** Before the first reload. The calm after each is as long as it was: a longer time meets more of the machine's own pauses. */
const BEFORE_MS = 20_000
/** While memory is watched, at the end of the calm. */
const WATCH_MS = 8_000
/** After a reload, until memory counts as what it is. */
const SETTLE_MS = 2_000
const ASK_EVERY_MS = 100
const MOST_RELOAD_MS = 120_000

export type Reload = {
  /** From the new folder's appearance until it serves, until everybody has moved and the old is gone. */
  readonly readyMs: number
  readonly goneMs: number
  /** In the calm before it: since the last one, or since the load began. */
  readonly before: Latencies
  readonly during: Latencies
  /** Of the server in the calm after it. */
  readonly rssMiB: number
}

export type ReloadResult = {
  readonly capacityPerSecond: number
  readonly perSecond: number
  readonly failed: number
  readonly rampSec: number
  /** Outside of reloads: before the first, and in the calm after each. */
  readonly calm: Latencies
  readonly during: Latencies
  /** Parts of that: until a version serves, and from then on while users move and the old one is drained. */
  readonly loading: Latencies
  readonly moving: Latencies
  readonly rssBeforeMiB: number
  readonly reloads: readonly Reload[]
}

export async function benchReload(
  bundleFolder: string,
  bodies: readonly string[],
  options: { readonly rampSec: number; readonly perSecond?: number },
  log: (line: string) => void,
): Promise<ReloadResult> {
  const { rampSec } = options
  const scope = createScope()
  const folder = tempFolder(scope)
  const place = `${folder}/demo`
  putVersion(bundleFolder, place, 0)
  const server = await startServer([
    // What is refused would be a failed request; the queue is another bench's.
    ...['--max-queue-ms', '600000'],
    ...['--models-dir', folder, '--promote-ramp-sec', String(rampSec), '--log-level', 'error'],
  ])
  const { port, pid } = server
  const client = createClient(port)
  const over = new AbortController()
  try {
    const capacityPerSecond = await capacity(client, bodies, CAPACITY)
    const perSecond = options.perSecond ?? LOAD_SHARE * capacityPerSecond
    log(`capacity ${capacityPerSecond.toFixed(0)}/s, load ${perSecond.toFixed(0)}/s`)
    const load = openLoop(client, bodies, {
      ...{ perSecond, seconds: MOST_SECONDS, until: over.signal },
    })
    await pause(BEFORE_MS)
    const rssBeforeMiB = await usualRssMiB(pid, WATCH_MS)
    const turns: { from: number; ready: number; gone: number; rss: number }[] = []
    for (let i = 1; i <= RELOADS; i++) {
      const from = performance.now()
      const version = putVersion(bundleFolder, place, i)
      await until(port, (states) => states.some((s) => s.version === version && s.isReady))
      const ready = performance.now()
      await until(port, (states) => states.length === 1 && states[0]?.version === version)
      const gone = performance.now()
      await pause(Math.max(SETTLE_MS, gone - from - WATCH_MS))
      const rss = await usualRssMiB(pid, WATCH_MS)
      turns.push({ from, ready, gone, rss })
      const took = [ready - from, gone - from].map((ms) => `${(ms / 1000).toFixed(1)} s`)
      log(
        `reload ${i}: ready after ${took[0]}, the old gone after ${took[1]}, ${rss.toFixed(0)} MiB`,
      )
    }
    over.abort()
    const { samples, failed } = await load
    const within = (from: number, to: number) =>
      samples.filter(({ dueAt }) => dueAt >= from && dueAt < to).map(({ ms }) => ms)
    const isCalm = (at: number) => turns.every(({ from, gone }) => at < from || at >= gone)
    const calm = samples.filter(({ dueAt }) => isCalm(dueAt)).map(({ ms }) => ms)
    return {
      ...{ capacityPerSecond, perSecond, failed, rampSec, rssBeforeMiB },
      calm: summary(calm),
      during: summary(turns.flatMap(({ from, gone }) => within(from, gone))),
      loading: summary(turns.flatMap(({ from, ready }) => within(from, ready))),
      moving: summary(turns.flatMap(({ ready, gone }) => within(ready, gone))),
      reloads: turns.map(({ from, ready, gone, rss }, i) => ({
        readyMs: ready - from,
        goneMs: gone - from,
        before: summary(within(turns[i - 1]?.gone ?? 0, from)),
        during: summary(within(from, gone)),
        rssMiB: rss,
      })),
    }
  } finally {
    over.abort()
    client.close()
    await server.stop()
    await scope.end()
  }
}

type State = { readonly version: string; readonly isReady: boolean }

async function until(port: number, isThere: (states: readonly State[]) => boolean): Promise<void> {
  const end = performance.now() + MOST_RELOAD_MS
  while (performance.now() < end) {
    const response = await fetch(`http://127.0.0.1:${port}/v1/admin/models`)
    const { models }: { models: { versions: { version: string; state: string }[] }[] } = JSON.parse(
      await response.text(),
    )
    const states = models.flatMap(({ versions }) =>
      versions.map(({ version, state }) => ({ version, isReady: state === 'ready' })),
    )
    if (isThere(states)) return
    await pause(ASK_EVERY_MS)
  }
  throw new Error(`a reload took longer than ${MOST_RELOAD_MS / 1000} s`)
}

/** Median of the process's resident memory over some time. */
async function usualRssMiB(pid: number, ms: number): Promise<number> {
  const rss = watchRss(pid, ASK_EVERY_MS)
  await pause(ms)
  return median(rss.stop())
}
