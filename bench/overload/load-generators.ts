// Several load generators as one: where one process would be the bottleneck.
import { type ChildProcess, fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { onCpus } from '../load.js'
import { SEED } from '../workload.js'
import { type Order, type Phase, READY, type Report, type Sample, type Start } from './generate.js'

/** From when all are ready until they begin. */
const HEAD_START_MS = 200

/**
 * The samples of `count` generators that begin together and share out connections and arrivals; Poisson
 * arrivals of several are Poisson arrivals.
 * @param cpus - that they may use, as taskset has them
 */
export async function generateLoad(
  order: Omit<Order, 'seed'>,
  count: number,
  cpus: string | undefined,
): Promise<Report> {
  const generators = Array.from({ length: count }, (_, i) =>
    start({ ...order, seed: SEED + i, phases: order.phases.map((p) => partOf(p, i, count)) }, cpus),
  )
  await Promise.all(generators.map(({ ready }) => ready))
  const begin: Start = { atMs: performance.timeOrigin + performance.now() + HEAD_START_MS }
  for (const { child } of generators) child.send(begin)
  const reports = await Promise.all(generators.map(({ report }) => report))
  return {
    phases: order.phases.map((_, p) => reports.flatMap<Sample>(({ phases }) => phases[p] ?? [])),
    sockets: reports.reduce((sum, { sockets }) => sum + sockets, 0),
  }
}

/** What generator `i` of `count` does of a phase. */
function partOf(phase: Phase, i: number, count: number): Phase {
  if (phase.kind === 'open') return { ...phase, perSecond: phase.perSecond / count }
  const { connections } = phase
  const upTo = (n: number) => Math.floor((n * connections) / count)
  return { ...phase, connections: upTo(i + 1) - upTo(i) }
}

type Generator = {
  readonly child: ChildProcess
  readonly ready: Promise<void>
  readonly report: Promise<Report>
}

function start(order: Order, cpus: string | undefined): Generator {
  const file = fileURLToPath(new URL('./generate.js', import.meta.url))
  const [execPath, ...execArgv] = onCpus(cpus)
  const child = fork(file, { serialization: 'advanced', execPath, execArgv })
  const failed = new Promise<never>((_, reject) => {
    child.once('error', reject)
    child.once('exit', (code) => reject(new Error(`a load generator exited with ${code}`)))
  })
  const ready = new Promise<void>((resolve) => {
    child.on('message', (told: unknown) => told === READY && resolve())
  })
  const report = new Promise<Report>((resolve) => {
    child.on('message', (told: Report | typeof READY) => told !== READY && resolve(told))
  })
  child.send(order)
  return {
    child,
    ready: Promise.race([ready, failed]),
    report: Promise.race([report, failed]),
  }
}
