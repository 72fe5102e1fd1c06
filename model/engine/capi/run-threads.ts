import { Worker } from 'node:worker_threads'
import koffi from 'koffi'
import type { Memory, Ort, Pointer, RunArguments } from './ort.js'
import { fromPlain } from './ort-error.js'
import { openRing, type Record, ringMemory } from './run-ring.js'
import type { FromRunWorker, RunWorkerOptions } from './run-worker.js'

/** Its arguments hold the arrays under the addresses until the run is over. */
type Job = {
  readonly args: RunArguments
  readonly resolve: () => void
  readonly reject: (error: unknown) => void
}

type RunThreads = { readonly run: Ort['run']; grow(count: number): void }

const started = new Map<string, RunThreads>()

/**
 * Makes runs of this library on threads of the process, as many as the engine with the most workers has. A thread takes
 * the next run itself, and seldom sleeps. Those of libuv's pool slept after each run and were woken on
 * the event loop's core, so that two runs shared one while the other idled: four callers of the demo had
 * 0.91 of engine node's rate on two cores, and have 1.02.
 */
export function startRunThreads(library: string, count: number): Ort['run'] {
  const threads = started.get(library) ?? createThreads(library)
  started.set(library, threads)
  threads.grow(count)
  return threads.run
}

function createThreads(library: string): RunThreads {
  const memory = ringMemory()
  const ring = openRing(memory)
  const workers: Worker[] = []
  const posted = new Map<number, Job>()
  /** While the ring has no room. */
  const waiting: Job[] = []
  let isBusy = false

  const post = () => {
    while (ring.hasRoom()) {
      const job = waiting.shift()
      if (job === undefined) break
      posted.set(ring.post(recordOf(job.args)), job)
    }
    // Idle threads do not keep the process alive.
    if (posted.size > 0 === isBusy) return
    isBusy = !isBusy
    if (isBusy) workers[0]?.ref()
    else workers[0]?.unref()
  }
  const onMessage = (answer: FromRunWorker) => {
    const { id, error } = typeof answer === 'number' ? { id: answer } : answer
    const job = posted.get(id)
    posted.delete(id)
    post()
    if (error === undefined) job?.resolve()
    else job?.reject(fromPlain(error))
  }

  // To stop a thread inside a run would abort the process.
  process.once('exit', ring.drain)

  return {
    run: (args) =>
      new Promise((resolve, reject) => {
        waiting.push({ args, resolve, reject })
        post()
      }),
    grow(count) {
      while (workers.length < count) {
        // It throws where nothing runs that could: that ends the process, as a fault of any thread does.
        const worker = new Worker(new URL('./run-worker.js', import.meta.url), {
          workerData: { library, memory } satisfies RunWorkerOptions,
          execArgv: [],
        })
        worker.on('message', onMessage)
        worker.unref()
        workers.push(worker)
      }
    },
  }
}

/** What run-worker.ts reads. */
function recordOf(args: RunArguments): Record {
  const { session, options, inputNames, inputs, inputCount, outputNames, outputs } = args
  const counts = { inputs: BigInt(inputCount), outputs: BigInt(args.outputCount) }
  return [
    ...[session, options, addressOf(inputNames), addressOf(inputs), counts.inputs],
    ...[addressOf(outputNames), addressOf(outputs), counts.outputs],
  ]
}

function addressOf(memory: Memory): Pointer {
  return typeof memory === 'bigint' ? memory : koffi.address(memory)
}
