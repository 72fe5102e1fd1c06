// What one ranking costs the server's event loop: processor time of its main thread, of a model so small that the
// engine's threads are done at once. Called by bench/run-event-loop.ts.
import { readFileSync } from 'node:fs'
import { PAPER_SHAPE, randomConfig } from '../model/export/random.js'
import { startServer } from './load.js'
import { mainThreadMs } from './main-thread.js'
import { createRawClient, requestBytes } from './overload/client.js'
import type { Shape } from './overload/shapes.js'
import { median } from './stats.js'
import { exportRandom } from './workload.js'

const CONNECTIONS = 2
const ROUNDS = 9
const US_PER_MS = 1000
/** As beside a GPU: all candidates in one run, K/V kept. */
const FLAGS = ['--micro-batch-size', '1024', '--workers', '1', '--kv', 'always']
/** However slow the machine is, nothing is refused. */
const PATIENCE = ['--max-queue-ms', '600000']

export type LoopTime = {
  /** The build that served. */
  readonly dist: string
  /** Microseconds of the main thread per request: median, least and most of the rounds. */
  readonly us: number
  readonly leastUs: number
  readonly mostUs: number
}

/** The paper's tokens, and next to no layers behind them. */
export function exportTinyModel(folder: string): string {
  exportRandom(randomConfig({ ...PAPER_SHAPE, layers: 1, dModel: 16, heads: 1 }), folder)
  return folder
}

/** The builds in turns, `requests` of them in each round, after `2 * requests` that warm up. */
export async function benchEventLoop(
  { bundle, files, prepare }: Shape,
  dists: readonly string[],
  requests: number,
): Promise<readonly LoopTime[]> {
  const bodies = files.map((file) => requestBytes(readFileSync(file, 'utf8'), {}))
  const ask = async (client: ReturnType<typeof createRawClient>, count: number) => {
    let next = 0
    const caller = async () => {
      while (next < count) {
        const { status } = await client.send(bodies[next++ % bodies.length] ?? Buffer.alloc(0))
        if (status !== 200) throw new Error(`expected 200, got ${status}`)
      }
    }
    await Promise.all(Array.from({ length: CONNECTIONS }, caller))
  }
  const ends: (() => Promise<void>)[] = []
  try {
    const served = []
    for (const dist of dists) {
      const flags = ['--bundle', bundle, '--no-playground', ...FLAGS, ...PATIENCE]
      const server = await startServer(flags, undefined, undefined, dist)
      ends.push(server.stop)
      const client = createRawClient(server.port)
      ends.push(async () => client.close())
      await prepare?.(server.port)
      await ask(client, 2 * requests)
      served.push({ dist, client, pid: server.pid, rounds: [] as number[] })
    }
    for (let round = 0; round < ROUNDS; round++) {
      for (const { client, pid, rounds } of served) {
        const before = mainThreadMs(pid)
        await ask(client, requests)
        rounds.push((US_PER_MS * (mainThreadMs(pid) - before)) / requests)
      }
    }
    return served.map(({ dist, rounds }) => ({
      dist,
      us: median(rounds),
      leastUs: Math.min(...rounds),
      mostUs: Math.max(...rounds),
    }))
  } finally {
    for (const end of ends.reverse()) await end()
  }
}
