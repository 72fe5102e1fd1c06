// The service over loopback on the demo model: latency of one cached user with 500 candidates, and
// an open-loop load of real requests. Called by bench/run.ts.
import { readdirSync, readFileSync } from 'node:fs'
import {
  capacity,
  createClient,
  eventLoopP99Ms,
  type Latencies,
  openLoop,
  scrape,
  startServer,
  summary,
  timed,
} from './load.js'
import { quantile } from './stats.js'

const CLOSED_REQUESTS = 300
const OPEN_SECONDS = 15
/** Share of the closed-loop capacity that the open loop asks for. */
const LOAD_SHARE = 0.6
const CAPACITY = { connections: 8, seconds: 5 }
const SCENARIO_CANDIDATES = 500

export type HttpResult = {
  readonly candidates: number
  /** One connection, one cached user, milliseconds. */
  readonly single: Latencies
  readonly capacityPerSecond: number
  readonly open: Latencies & {
    readonly offeredPerSecond: number
    readonly failed: number
    /** p99 of the server's event-loop delay under this load, milliseconds. */
    readonly eventLoopP99Ms: number
  }
}

/** The files of a folder with a request each, in the order of their names. */
export function requestFiles(folder: string): readonly string[] {
  return readdirSync(folder)
    .sort()
    .map((file) => `${folder}/${file}`)
}

/** Their requests. */
export function readBodies(folder: string): readonly string[] {
  return requestFiles(folder).map((file) => readFileSync(file, 'utf8'))
}

export async function benchHttp(
  bundleFolder: string,
  requestFolder: string,
  log: (line: string) => void,
): Promise<HttpResult> {
  const bodies = readBodies(requestFolder)
  const wide = bodies.find(
    (body) =>
      JSON.parse(body).candidates.length === SCENARIO_CANDIDATES &&
      JSON.parse(body).history.length > 0,
  )
  if (wide === undefined)
    throw new Error(`no sample request with ${SCENARIO_CANDIDATES} candidates`)
  const server = await startServer(['--bundle', bundleFolder])
  const { port } = server
  try {
    const client = createClient(port)
    const single: number[] = []
    for (let i = 0; i < CLOSED_REQUESTS; i++) single.push(await timed(() => client.post(wide)))
    log(`m = ${SCENARIO_CANDIDATES}, cached: p50 ${quantile(single, 0.5).toFixed(2)} ms`)
    const capacityPerSecond = await capacity(client, bodies, CAPACITY)
    await scrape(port) // forgets what came before
    const { samples: _, ...open } = await openLoop(client, bodies, {
      perSecond: capacityPerSecond * LOAD_SHARE,
      seconds: OPEN_SECONDS,
    })
    const eventLoopMs = eventLoopP99Ms(await scrape(port))
    log(
      `open loop ${open.offeredPerSecond.toFixed(0)}/s: p50 ${open.p50.toFixed(2)}, p99 ${open.p99.toFixed(2)} ms, event loop p99 ${eventLoopMs.toFixed(1)} ms`,
    )
    client.close()
    return {
      candidates: SCENARIO_CANDIDATES,
      single: summary(single),
      capacityPerSecond,
      open: { ...open, eventLoopP99Ms: eventLoopMs },
    }
  } finally {
    await server.stop()
  }
}
