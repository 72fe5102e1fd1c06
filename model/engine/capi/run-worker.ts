// A thread that makes runs, one after the other, for as long as the process lives.
import { parentPort, workerData } from 'node:worker_threads'
import { lowerPriority } from '../priority.js'
import { loadOrt } from './ort.js'
import { type PlainError, plainError } from './ort-error.js'
import { openRing, type Record } from './run-ring.js'

export type RunWorkerOptions = { readonly library: string; readonly memory: SharedArrayBuffer }

/** The id of a run that ended well, or why it did not. */
export type FromRunWorker = number | { readonly id: number; readonly error: PlainError }

const { library, memory }: RunWorkerOptions = workerData
lowerPriority(0)
const ort = loadOrt(library)
const ring = openRing(memory)

/** Words: those of `recordOf` in run-threads.ts. */
function run([session, options, inputNames, inputs, inputCount, ...rest]: Record): void {
  const [outputNames, outputs, outputCount] = rest
  ort.runNow({
    session: session ?? 0n,
    options: options ?? 0n,
    inputNames: inputNames ?? 0n,
    inputs: inputs ?? 0n,
    inputCount: Number(inputCount),
    outputNames: outputNames ?? 0n,
    outputs: outputs ?? 0n,
    outputCount: Number(outputCount),
  })
}

for (;;) {
  const { id, record } = ring.take()
  let answer: FromRunWorker = id
  try {
    run(record)
  } catch (error) {
    answer = { id, error: plainError(error) }
  }
  ring.done()
  parentPort?.postMessage(answer)
}
