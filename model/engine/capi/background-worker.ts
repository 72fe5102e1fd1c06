// A thread of the lowest priority that makes sessions and runs them while an engine starts beside
// live traffic: what it does takes the processor only where nobody else wants it.
import { parentPort, workerData } from 'node:worker_threads'
import { LOWEST, lowerPriority } from '../priority.js'
import { loadLibrary } from './native.js'
import { type Graph, loadOrt, type Pointer, type RunArguments } from './ort.js'
import { type PlainError, plainError } from './ort-error.js'

export type BackgroundOptions = { readonly library: string }

export type ToBackground = { readonly id: number } & BackgroundCall
export type BackgroundCall =
  | {
      readonly kind: 'create'
      readonly env: Pointer
      readonly graph: Graph
      readonly options: Pointer
      readonly container: Pointer
    }
  | { readonly kind: 'run'; readonly args: RunArguments }

export type FromBackground = {
  readonly id: number
  /** Processor time of this thread since it began. */
  readonly spentMs: number
  readonly session?: Pointer
  readonly error?: PlainError
}

const CLOCK_THREAD_CPUTIME_ID = 3

const { library }: BackgroundOptions = workerData
lowerPriority(0, LOWEST)
const ort = loadOrt(library)
const clockGetTime = loadLibrary(null).func('clock_gettime', 'int', ['int', 'void*'])
const time = new BigInt64Array(2)

function spentMs(): number {
  clockGetTime(CLOCK_THREAD_CPUTIME_ID, time)
  return 1000 * Number(time[0]) + Number(time[1]) / 1e6
}

function perform(call: ToBackground): Pointer | undefined {
  if (call.kind === 'create') {
    return ort.createSessionNow(call.env, call.graph, call.options, call.container)
  }
  ort.runNow(call.args)
  return undefined
}

parentPort?.on('message', (call: ToBackground) => {
  let answer: Omit<FromBackground, 'id' | 'spentMs'>
  try {
    const session = perform(call)
    answer = session === undefined ? {} : { session }
  } catch (error) {
    answer = { error: plainError(error) }
  }
  parentPort?.postMessage({ id: call.id, spentMs: spentMs(), ...answer } satisfies FromBackground)
})
