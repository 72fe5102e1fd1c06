// Thread of a lane: replays captured CUDA graphs. A graph belongs to the thread that captured it, and
// ONNX Runtime captures it on the runs of this thread, so nothing else may run its sessions.
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { cudaOps, type DeviceOps, hostOps } from './device-ops.js'
import { loadOrt, type Pointer, type RunArguments } from './ort.js'

export type LaneOptions = {
  readonly library: string
  /** CUDA's runtime; without it the lane's memory is the host's. */
  readonly cudaRuntime?: string
}

/** What the runs of one shape share: values over fixed addresses, and where inputs and results lie. */
export type LaneShape = RunArguments & { readonly inputsAt: Pointer; readonly logitsAt: Pointer }

/** K/V to be copied into the lane's own, in front of which `padBytes` of each region are zero. */
export type LaneLoad = {
  readonly to: Pointer
  readonly toPitch: number
  readonly from: Pointer
  readonly fromPitch: number
  readonly bytes: number
  readonly padBytes: number
  readonly regions: number
}

export type ToLane =
  | { readonly kind: 'shape'; readonly shape: number; readonly args: LaneShape }
  | {
      readonly kind: 'run'
      readonly shape: number
      readonly load?: LaneLoad
      /** All host inputs of the shape, packed as its values lie. */
      readonly inputs: Uint8Array
      /** Bytes of the results to read. */
      readonly bytes: number
    }

export type FromLane =
  | { readonly kind: 'done'; readonly logits: Uint8Array }
  | { readonly kind: 'error'; readonly message: string }

/** How long the thread looks out for its next job before it sleeps. */
const SPIN_MS = 1

const { library, cudaRuntime }: LaneOptions = workerData
const ort = loadOrt(library)
const ops: DeviceOps = cudaRuntime === undefined ? hostOps() : cudaOps(cudaRuntime)
const shapes = new Map<number, LaneShape>()

function run(job: Extract<ToLane, { kind: 'run' }>): Uint8Array {
  const shape = shapes.get(job.shape)
  if (shape === undefined) throw new Error(`no shape ${job.shape}`)
  if (job.load !== undefined) {
    const { to, toPitch, from, fromPitch, bytes, padBytes, regions } = job.load
    if (padBytes > 0) ops.zeroRows(to, toPitch, padBytes, regions)
    ops.copyRows(to + BigInt(padBytes), toPitch, from, fromPitch, bytes, regions)
  }
  ops.write(shape.inputsAt, job.inputs)
  ops.finish()
  ort.runNow(shape)
  const logits = new Uint8Array(job.bytes)
  ops.read(logits, shape.logitsAt)
  return logits
}

function post(message: FromLane, transfer: ArrayBuffer[] = []): void {
  parentPort?.postMessage(message, transfer)
}

function handle(message: ToLane): void {
  if (message.kind === 'shape') {
    shapes.set(message.shape, message.args)
    return
  }
  try {
    const logits = run(message)
    post({ kind: 'done', logits }, [logits.buffer as ArrayBuffer])
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error)
    post({ kind: 'error', message: text })
  }
}

parentPort?.on('message', (first: ToLane) => {
  handle(first)
  // Waking a thread takes as long as a third of a small run: the next job often comes right behind.
  for (let end = performance.now() + SPIN_MS; performance.now() < end; ) {
    const next = parentPort && receiveMessageOnPort(parentPort)
    if (!next) continue
    handle(next.message)
    end = performance.now() + SPIN_MS
  }
})
