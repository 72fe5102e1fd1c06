// Three replicas behind nginx on one Redis Cluster, under load while one is killed and all are restarted.
import type { Bundle } from '../../model/manifest.js'
import type { Scope } from '../../test/fixtures.js'
import { type Passed, startNginx } from '../../test/nginx.js'
import { startCluster, until } from '../../test/redis.js'
import { type Server, startServer } from '../load.js'
import { merged, type Outcome, type Traffic } from '../traffic.js'

const REPLICAS = 3
/** As deploy/kubernetes, but shorter: nobody here asks /readyz once a second. */
const DRAIN_DELAY_MS = 500

export type Moment = { readonly what: string; readonly atMs: number }

export type ScaleOut = {
  readonly outcome: Outcome
  readonly moments: readonly Moment[]
  /** What nginx saw of the same requests. */
  readonly passed: readonly Passed[]
  /** Of the replicas as they are at the end. */
  readonly ports: readonly number[]
}

export type ScaleOutOptions = {
  readonly bundle: Bundle
  readonly traffic: Traffic
  readonly perSecond: number
  /** The time between two events: resolves when there was load enough. */
  readonly calm: () => Promise<unknown>
  readonly log?: (line: string) => void
}

/** What cleans up is left to the scope, so that the replicas can be asked further. */
export async function scaleOut(scope: Scope, options: ScaleOutOptions): Promise<ScaleOut> {
  const { bundle, traffic, perSecond, calm, log = () => {} } = options
  const { url } = await startCluster(scope)
  const flags = [
    ...['--bundle', bundle.folder, '--redis-url', url, '--micro-batch-size', '64'],
    // All K/V that there is, so that where it comes from is the load balancer's doing.
    ...['--kv', 'always', '--workers', '1', '--threads-per-worker', '1'],
    ...['--drain-delay-ms', String(DRAIN_DELAY_MS), '--log-level', 'error'],
  ]
  const start = async (port?: number) => {
    const server = await startServer(flags, port)
    scope.after(server.kill)
    return server
  }
  const replicas: Server[] = await Promise.all(Array.from({ length: REPLICAS }, () => start()))
  const ports = replicas.map(({ port }) => port)
  const nginx = await startNginx(scope, ports)
  /** nginx writes of a request when the answer has gone out, which may have arrived by then. */
  const logged = (count: number) =>
    until(`nginx to log ${count} requests`, () => nginx.passed().length >= count)
  const visited = await traffic.visit([nginx.port])
  const before = visited.samples.length
  await logged(before)

  const moments: Moment[] = []
  let isOver = false
  const startMs = performance.now()
  const mark = (what: string) => {
    const atMs = performance.now() - startMs
    moments.push({ what, atMs })
    log(`${(atMs / 1000).toFixed(1)} s: ${what}`)
  }
  const events = async () => {
    await calm()
    mark('replica 2 killed')
    await replicas[1]?.kill()
    await calm()
    replicas[1] = await start(ports[1])
    mark('replica 2 back')
    await calm()
    for (const [i, port] of ports.entries()) {
      mark(`SIGTERM to ${i + 1}`)
      await replicas[i]?.stop()
      replicas[i] = await start(port)
      mark(`${i + 1} ready`)
      await calm()
    }
  }
  const [outcomes] = await Promise.all([
    traffic.openLoop([nginx.port], perSecond, () => isOver),
    events().finally(() => {
      isOver = true
    }),
  ])
  const outcome = merged(outcomes)
  await logged(before + outcome.samples.length)
  return {
    outcome,
    moments,
    passed: nginx.passed().slice(before),
    ports,
  }
}
