// A load generator, a process of its own: closed and open loops over raw sockets. Started by load-generators.ts.
import { readFileSync } from 'node:fs'
import { createRandom } from '../../model/random.js'
import { createRawClient, requestBytes } from './client.js'

/** One phase of the load. */
export type Phase =
  | { readonly kind: 'closed'; readonly connections: number; readonly seconds: number }
  | { readonly kind: 'open'; readonly perSecond: number; readonly seconds: number }

export type Order = {
  readonly port: number
  /** Of its arrivals, and of which request comes next. */
  readonly seed: number
  /** Files with a request each. */
  readonly files: readonly string[]
  readonly deadlineMs: number
  /** Never sleeps: on cores of its own, where a socket that has to wake it would cost the server time. */
  readonly polls: boolean
  readonly phases: readonly Phase[]
}

/** One request: seconds into its phase when it was due, its status, and milliseconds from due and from sent. */
export type Sample = readonly [dueSec: number, status: number, dueMs: number, sentMs: number]

/** Samples by phase; a request that found no answer has status 0. */
export type Report = { readonly phases: readonly (readonly Sample[])[]; readonly sockets: number }

const REFUSED_PAUSE_MS = 20
/** After the end: who has no answer by then gets none. */
const GIVE_UP_MS = 10_000

/** Told once its requests are read; answered with the `Start`. */
export const READY = 'ready'
/** When the first phase begins, in milliseconds since the epoch: the same for all generators. */
export type Start = { readonly atMs: number }

async function generate(
  { port, seed, files, deadlineMs, polls, phases }: Order,
  begun: () => Promise<Start>,
): Promise<Report> {
  const client = createRawClient(port)
  const headers = { 'x-deadline-ms': String(deadlineMs) }
  const requests = files.map((file) => requestBytes(readFileSync(file, 'utf8'), headers))
  const random = createRandom(seed)
  const pick = () => requests[Math.floor(random() * requests.length)] ?? Buffer.alloc(0)
  const one = async (start: number, dueAt: number): Promise<Sample> => {
    const reply = await client.send(pick()).catch(() => ({ status: 0, ms: Number.NaN }))
    const now = performance.now()
    return [(dueAt - start) / 1000, reply.status, now - dueAt, reply.ms]
  }

  const until = async (at: number) => {
    const waitMs = at - performance.now()
    // Who is late reads what has come meanwhile all the same: else each request would need a socket of its own.
    if (waitMs <= 0) await new Promise((resolve) => setImmediate(resolve))
    else if (polls)
      while (performance.now() < at) await new Promise((resolve) => setImmediate(resolve))
    else await new Promise((resolve) => setTimeout(resolve, waitMs))
  }

  const closed = async (connections: number, seconds: number) => {
    const samples: Sample[] = []
    const start = performance.now()
    const caller = async () => {
      for (let now = start; now - start < 1000 * seconds; now = performance.now()) {
        const sample = await one(start, now)
        samples.push(sample)
        // Else a refusal would only make the next one come sooner.
        if (sample[1] !== 200) await new Promise((resolve) => setTimeout(resolve, REFUSED_PAUSE_MS))
      }
    }
    // Awake or asleep as while the arrivals come: that too makes a difference to the server.
    await Promise.all([
      until(start + 1000 * seconds),
      ...Array.from({ length: connections }, caller),
    ])
    return samples
  }

  let giveUp = () => {}
  const over = new Promise<void>((resolve) => {
    giveUp = resolve
  })
  /** Poisson arrivals, whether or not earlier requests were answered. */
  const open = async (perSecond: number, seconds: number) => {
    const pending: Promise<Sample>[] = []
    const start = performance.now()
    for (let due = 0; ; ) {
      due += (-Math.log(1 - random()) / perSecond) * 1000
      if (due >= 1000 * seconds) break
      await until(start + due)
      const unanswered = over.then((): Sample => [due / 1000, 0, Number.NaN, Number.NaN])
      pending.push(Promise.race([one(start, start + due), unanswered]))
    }
    return pending
  }

  await until((await begun()).atMs - performance.timeOrigin)
  const done: Promise<readonly Sample[]>[] = []
  for (const phase of phases) {
    if (phase.kind === 'closed') {
      const samples = await closed(phase.connections, phase.seconds)
      done.push(Promise.resolve(samples))
    } else {
      // The next phase begins on time, not when the last answer of this one is there.
      done.push(Promise.all(await open(phase.perSecond, phase.seconds)))
    }
  }
  const timer = setTimeout(giveUp, GIVE_UP_MS)
  const report = { phases: await Promise.all(done), sockets: client.sockets() }
  clearTimeout(timer)
  client.close()
  return report
}

process.once('message', async (order: Order) => {
  const report = await generate(order, () => {
    const start = new Promise<Start>((resolve) => process.once('message', resolve))
    process.send?.(READY)
    return start
  })
  process.send?.(report, () => process.disconnect())
})
