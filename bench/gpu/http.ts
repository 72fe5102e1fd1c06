// The service on a GPU over loopback: paper shape, 1,024 candidates. Called by bench/gpu/run.ts.
import {
  type Client,
  capacity,
  createClient,
  eventLoopP99Ms,
  type Latencies,
  openLoop,
  type Server,
  scrape,
  startServer,
  summary,
  timed,
} from '../load.js'
import { randomRequest, rankBody } from '../workload.js'

const CANDIDATES = 1024
const EVENTS = 1023
/** Their K/V fits many times: all requests after the first of each are hits. */
const USERS = 32
const LOADS = [0.5, 0.8]
const SECONDS = 4
const CAPACITY = { connections: 16, seconds: 3 }
const SINGLE = 60

type Load = Latencies & {
  readonly share: number
  readonly offeredPerSecond: number
  readonly failed: number
  readonly eventLoopP99Ms: number
  /** Share of the time that the event loop spent on parsing, tokens, heads and JSON. */
  readonly eventLoopBusy: number
}

export type GpuHttp = {
  readonly flags: readonly string[]
  readonly kinds: readonly {
    readonly kv: 'hit' | 'miss'
    /** One request at a time. */
    readonly single: Latencies
    readonly capacityPerSecond: number
    readonly loads: readonly Load[]
  }[]
}

export async function benchGpuHttp(
  folder: string,
  flags: readonly string[],
  log: (line: string) => void,
): Promise<GpuHttp> {
  const server = await startServer(['--bundle', folder, '--max-queue-ms', '600000', ...flags])
  const client = createClient(server.port)
  try {
    const bodies = Array.from({ length: USERS }, (_, u) => bodyOf(`user-${u}`, u))
    let fresh = 0
    // A user never seen before: the same history under another name.
    const unknown: Client = {
      post: (body) => client.post(body.replace(/"user-\d+"/, `"fresh-${fresh++}"`)),
      close() {},
    }
    for (const body of bodies) await client.post(body)
    return {
      flags,
      kinds: [
        { kv: 'hit', ...(await loads(server, client, bodies, log)) },
        { kv: 'miss', ...(await loads(server, unknown, bodies, log)) },
      ],
    }
  } finally {
    client.close()
    await server.stop()
  }
}

async function loads(
  server: Server,
  client: Client,
  bodies: readonly string[],
  log: (line: string) => void,
) {
  const alone: number[] = []
  for (let i = 0; i < SINGLE; i++) {
    alone.push(await timed(() => client.post(bodies[i % bodies.length] ?? '')))
  }
  const single = summary(alone.slice(SINGLE / 6))
  const capacityPerSecond = await capacity(client, bodies, CAPACITY)
  log(`one at a time p50 ${single.p50.toFixed(2)} ms, capacity ${capacityPerSecond.toFixed(0)}/s`)
  const results: Load[] = []
  for (const share of LOADS) {
    // Forgets the event loop's figures so far.
    const before = eventLoopSeconds(await scrape(server.port))
    const start = performance.now()
    const open = await openLoop(client, bodies, {
      perSecond: capacityPerSecond * share,
      seconds: SECONDS,
    })
    const seconds = (performance.now() - start) / 1000
    const metrics = await scrape(server.port)
    const eventLoopBusy = (eventLoopSeconds(metrics) - before) / seconds
    const eventLoopMs = eventLoopP99Ms(metrics)
    results.push({ share, ...open, eventLoopP99Ms: eventLoopMs, eventLoopBusy })
    log(
      `${share * 100} %, ${open.offeredPerSecond.toFixed(0)}/s: p50 ${open.p50.toFixed(2)}, p99 ${open.p99.toFixed(2)} ms, ${open.failed} failed; event loop p99 ${eventLoopMs.toFixed(1)} ms, busy ${(100 * eventLoopBusy).toFixed(0)} %`,
    )
  }
  return { single, capacityPerSecond, loads: results }
}

/** Seconds spent so far in the stages that run on the event loop. */
function eventLoopSeconds(metrics: string): number {
  return ['parse', 'sequence', 'heads', 'serialize'].reduce((sum, stage) => {
    const line = new RegExp(
      `^peregrine_stage_seconds_sum\\{[^}]*stage="${stage}"[^}]*\\} (\\S+)`,
      'm',
    )
    return sum + Number(line.exec(metrics)?.[1] ?? Number.NaN)
  }, 0)
}

function bodyOf(user: string, seed: number): string {
  return rankBody(randomRequest(user, EVENTS, CANDIDATES, seed))
}
