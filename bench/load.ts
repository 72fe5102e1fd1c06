// Load over loopback: a real server in its own process, one client, closed and open loops.
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { Agent, request } from 'node:http'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createRandom } from '../model/random.js'
import { freePort } from '../test/redis.js'
import { callsPerSecond, quantile } from './stats.js'

const SEED = 7
const READY_TRIES = 1200

export type Latencies = {
  readonly p50: number
  readonly p95: number
  readonly p99: number
  readonly count: number
}

export type Client = { post(body: string): Promise<number>; close(): void }
export type Server = {
  readonly port: number
  readonly pid: number
  /** SIGTERM. @throws when it does not end with code 0 */
  stop(): Promise<void>
  /** SIGKILL. */
  kill(): Promise<void>
}
/** One answer: when it was due, by performance.now(), and how long it took from then. */
export type Sample = { readonly dueAt: number; readonly ms: number }

/** Requests per second that a few connections reach when each waits for its answer. */
export async function capacity(
  client: Client,
  bodies: readonly string[],
  { connections, seconds }: { readonly connections: number; readonly seconds: number },
): Promise<number> {
  const callers = Array.from(
    { length: connections },
    (_, c) => (made: number) => client.post(bodies[(c * 25 + made) % bodies.length] ?? ''),
  )
  return callsPerSecond(callers, 1000 * seconds)
}

type OpenLoop = {
  readonly perSecond: number
  readonly seconds: number
  /** Ends it sooner. */
  readonly until?: AbortSignal
}

/**
 * Poisson arrivals at a fixed rate, whether or not earlier requests were answered; latency counts
 * from the moment a request was due, so a stall shows in every request that it delayed.
 */
export async function openLoop(
  client: Client,
  bodies: readonly string[],
  { perSecond, seconds, until }: OpenLoop,
) {
  const random = createRandom(SEED)
  const samples: Sample[] = []
  let failed = 0
  const pending: Promise<void>[] = []
  const start = performance.now()
  let due = 0
  while (due < 1000 * seconds && until?.aborted !== true) {
    due += (-Math.log(1 - random()) / perSecond) * 1000
    const wait = start + due - performance.now()
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait))
    const dueAt = start + due
    const body = bodies[Math.floor(random() * bodies.length)] ?? ''
    pending.push(
      client.post(body).then(
        (status) => {
          if (status === 200) samples.push({ dueAt, ms: performance.now() - dueAt })
          else failed++
        },
        () => {
          failed++
        },
      ),
    )
  }
  await Promise.all(pending)
  const latencies = samples.map(({ ms }) => ms)
  return { ...summary(latencies), offeredPerSecond: perSecond, failed, samples }
}

export function summary(samples: readonly number[]): Latencies {
  return {
    p50: quantile(samples, 0.5),
    p95: quantile(samples, 0.95),
    p99: quantile(samples, 0.99),
    count: samples.length,
  }
}

export async function timed(run: () => Promise<number>): Promise<number> {
  const start = performance.now()
  const status = await run()
  if (status !== 200) throw new Error(`expected 200, got ${status}`)
  return performance.now() - start
}

export function createClient(port: number): Client {
  const agent = new Agent({ keepAlive: true })
  return {
    post: (body) => postRank(agent, port, body),
    close: () => agent.destroy(),
  }
}

/** POST /v1/rank; resolves to the status once the whole answer is there, which `onData` gets. */
export function postRank(
  agent: Agent,
  port: number,
  body: string,
  {
    headers: further = {},
    onData,
  }: {
    readonly headers?: { readonly [name: string]: string }
    readonly onData?: (part: Buffer) => void
  } = {},
): Promise<number> {
  return new Promise((resolve, reject) => {
    const headers = {
      'content-type': 'application/json',
      'content-length': Buffer.byteLength(body),
      ...further,
    }
    const call = request(
      { host: '127.0.0.1', port, path: '/v1/rank', method: 'POST', agent, headers },
      (response) => {
        if (onData === undefined) response.resume()
        else response.on('data', onData)
        response.on('end', () => resolve(response.statusCode ?? 0)).on('error', reject)
      },
    )
    call.on('error', reject)
    call.end(body)
  })
}

/**
 * Starts `peregrine serve` with these flags, on a free port when none is given, and waits until it is ready.
 * @param cpus - that it may use, as taskset has them: `0-3`
 * @param dist - folder of the build that serves; this one when absent
 */
export async function startServer(
  flags: readonly string[],
  givenPort?: number,
  cpus?: string,
  dist = fileURLToPath(new URL('..', import.meta.url)),
): Promise<Server> {
  const cli = join(dist, 'server/cli.js')
  const port = givenPort ?? (await freePort())
  const args = [cli, 'serve', '--port', String(port), '--log-level', 'warn', ...flags]
  const [program, ...first] = onCpus(cpus)
  const server: ChildProcess = spawn(program, [...first, ...args], {
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  for (let attempt = 0; attempt < READY_TRIES; attempt++) {
    if (server.exitCode !== null) throw new Error(`the server exited with ${server.exitCode}`)
    const ready = await fetch(`http://127.0.0.1:${port}/readyz`).then(
      ({ status }) => status === 200,
      () => false,
    )
    if (ready) {
      return {
        port,
        pid: server.pid ?? 0,
        async stop() {
          await end(server, 'SIGTERM')
          const { exitCode } = server
          if (exitCode !== null && exitCode !== 0)
            throw new Error(`the server ended with ${exitCode}`)
        },
        kill: () => end(server, 'SIGKILL'),
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  server.kill('SIGKILL')
  throw new Error(`the server did not get ready in ${READY_TRIES / 10} s`)
}

/** How Node is started on these CPUs: on all when undefined. */
export function onCpus(cpus: string | undefined): readonly [program: string, ...args: string[]] {
  return cpus === undefined ? [process.execPath] : ['taskset', '-c', cpus, process.execPath]
}

async function end(server: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (server.exitCode !== null || server.signalCode !== null) return
  const exit = once(server, 'exit')
  server.kill(signal)
  await exit
}

/** The server's metrics; reading them also starts its event-loop figures afresh. */
export async function scrape(port: number): Promise<string> {
  return (await fetch(`http://127.0.0.1:${port}/metrics`)).text()
}

/** p99 of the event-loop delay since the scrape before, as the server itself reports it. */
export function eventLoopP99Ms(metrics: string): number {
  const line = /^nodejs_eventloop_lag_p99_seconds (\S+)/m.exec(metrics)
  return 1000 * Number(line?.[1] ?? Number.NaN)
}
