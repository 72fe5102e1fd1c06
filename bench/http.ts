// The service over loopback on the demo model: latency of one cached user with 500 candidates, and
// an open-loop load of real requests. Called by bench/run.ts.
import { type ChildProcess, spawn } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { Agent, request } from 'node:http'
import { createServer } from 'node:net'
import { fileURLToPath } from 'node:url'
import { createRandom } from '../model/random.js'
import { quantile } from './stats.js'

const CLOSED_REQUESTS = 300
const OPEN_SECONDS = 15
/** Share of the closed-loop capacity that the open loop asks for. */
const LOAD_SHARE = 0.6
const CAPACITY_CONNECTIONS = 8
const CAPACITY_SECONDS = 5
const SCENARIO_CANDIDATES = 500
const SEED = 7

export type Latencies = {
  readonly p50: number
  readonly p95: number
  readonly p99: number
  readonly count: number
}

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

type Client = { post(body: string): Promise<number>; close(): void }

export async function benchHttp(
  bundleFolder: string,
  requestFolder: string,
  log: (line: string) => void,
): Promise<HttpResult> {
  const bodies = readdirSync(requestFolder)
    .sort()
    .map((file) => readFileSync(`${requestFolder}/${file}`, 'utf8'))
  const wide = bodies.find(
    (body) =>
      JSON.parse(body).candidates.length === SCENARIO_CANDIDATES &&
      JSON.parse(body).history.length > 0,
  )
  if (wide === undefined)
    throw new Error(`no sample request with ${SCENARIO_CANDIDATES} candidates`)
  const port = await freePort()
  const server = await startServer(bundleFolder, port)
  try {
    const client = createClient(port)
    const single: number[] = []
    for (let i = 0; i < CLOSED_REQUESTS; i++) single.push(await timed(() => client.post(wide)))
    log(`m = ${SCENARIO_CANDIDATES}, cached: p50 ${quantile(single, 0.5).toFixed(2)} ms`)
    const capacityPerSecond = await capacity(client, bodies)
    await eventLoopDelay(port) // forgets what came before
    const open = await openLoop(client, bodies, capacityPerSecond * LOAD_SHARE)
    const eventLoopP99Ms = await eventLoopDelay(port)
    log(
      `open loop ${open.offeredPerSecond.toFixed(0)}/s: p50 ${open.p50.toFixed(2)}, p99 ${open.p99.toFixed(2)} ms, event loop p99 ${eventLoopP99Ms.toFixed(1)} ms`,
    )
    client.close()
    return {
      candidates: SCENARIO_CANDIDATES,
      single: summary(single),
      capacityPerSecond,
      open: { ...open, eventLoopP99Ms },
    }
  } finally {
    server.kill('SIGTERM')
    await new Promise((resolve) => server.once('exit', resolve))
  }
}

/** Requests per second that a few connections reach when each waits for its answer. */
async function capacity(client: Client, bodies: readonly string[]): Promise<number> {
  const end = performance.now() + 1000 * CAPACITY_SECONDS
  let done = 0
  const connection = async (offset: number) => {
    for (let i = offset; performance.now() < end; i++) {
      await client.post(bodies[i % bodies.length] ?? '')
      done++
    }
  }
  const start = performance.now()
  await Promise.all(Array.from({ length: CAPACITY_CONNECTIONS }, (_, c) => connection(c * 25)))
  return (1000 * done) / (performance.now() - start)
}

/**
 * Poisson arrivals at a fixed rate, whether or not earlier requests were answered; latency counts
 * from the moment a request was due, so a stall shows in every request that it delayed.
 */
async function openLoop(client: Client, bodies: readonly string[], perSecond: number) {
  const random = createRandom(SEED)
  const latencies: number[] = []
  let failed = 0
  const pending: Promise<void>[] = []
  const start = performance.now()
  let due = 0
  while (due < 1000 * OPEN_SECONDS) {
    due += (-Math.log(1 - random()) / perSecond) * 1000
    const wait = start + due - performance.now()
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait))
    const dueAt = start + due
    const body = bodies[Math.floor(random() * bodies.length)] ?? ''
    pending.push(
      client.post(body).then(
        (status) => {
          if (status === 200) latencies.push(performance.now() - dueAt)
          else failed++
        },
        () => {
          failed++
        },
      ),
    )
  }
  await Promise.all(pending)
  return { ...summary(latencies), offeredPerSecond: perSecond, failed }
}

function summary(samples: readonly number[]): Latencies {
  return {
    p50: quantile(samples, 0.5),
    p95: quantile(samples, 0.95),
    p99: quantile(samples, 0.99),
    count: samples.length,
  }
}

async function timed(run: () => Promise<number>): Promise<number> {
  const start = performance.now()
  const status = await run()
  if (status !== 200) throw new Error(`expected 200, got ${status}`)
  return performance.now() - start
}

function createClient(port: number): Client {
  const agent = new Agent({ keepAlive: true })
  return {
    post: (body) =>
      new Promise((resolve, reject) => {
        const headers = {
          'content-type': 'application/json',
          'content-length': Buffer.byteLength(body),
        }
        const call = request(
          { host: '127.0.0.1', port, path: '/v1/rank', method: 'POST', agent, headers },
          (response) => {
            response
              .resume()
              .on('end', () => resolve(response.statusCode ?? 0))
              .on('error', reject)
          },
        )
        call.on('error', reject)
        call.end(body)
      }),
    close: () => agent.destroy(),
  }
}

async function startServer(bundleFolder: string, port: number): Promise<ChildProcess> {
  const cli = fileURLToPath(new URL('../server/cli.js', import.meta.url))
  const args = [
    cli,
    'serve',
    '--bundle',
    bundleFolder,
    '--port',
    String(port),
    '--log-level',
    'warn',
  ]
  const server = spawn(process.execPath, args, { stdio: ['ignore', 'inherit', 'inherit'] })
  for (let attempt = 0; attempt < 300; attempt++) {
    if (server.exitCode !== null) throw new Error(`the server exited with ${server.exitCode}`)
    const ready = await fetch(`http://127.0.0.1:${port}/readyz`).then(
      ({ status }) => status === 200,
      () => false,
    )
    if (ready) return server
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  throw new Error('the server did not get ready in 30 s')
}

/** p99 of the event-loop delay since the last scrape, as the server itself reports it. */
async function eventLoopDelay(port: number): Promise<number> {
  const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text()
  const line = /^nodejs_eventloop_lag_p99_seconds (\S+)/m.exec(text)
  return 1000 * Number(line?.[1] ?? Number.NaN)
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const probe = createServer().on('error', reject)
    probe.listen(0, '127.0.0.1', () => {
      const address = probe.address()
      const port = typeof address === 'object' && address !== null ? address.port : 0
      probe.close(() => resolve(port))
    })
  })
}
