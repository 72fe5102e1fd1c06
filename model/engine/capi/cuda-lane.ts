import { setImmediate } from 'node:timers'
import { RankError } from '../../errors.js'
import { bindCudaRuntime, MEMCPY_DEFAULT } from './cuda-runtime.js'
import type { CopyIn } from './kernels.js'
import { type LaneDevice, type Mirror, type Replay, viewOf } from './lane-device.js'
import { callAsync } from './native.js'
import type { Pointer, RunArguments } from './ort.js'

const STREAM_NON_BLOCKING = 1
/** A thread that waits for such an event sleeps; nothing asks when it was. */
const EVENT_BLOCKING_SYNC = 1
const EVENT_DISABLE_TIMING = 2
const HOST_ALLOC_PORTABLE = 1
/** Other threads allocate meanwhile, and ONNX Runtime may in the captured run. */
const CAPTURE_RELAXED = 2
const NODE_HOST = 3
const NOT_READY = 600
/** Before ONNX Runtime's memory has its size and its libraries their workspaces. */
const WARM_RUNS = 2
/**
 * How long the event loop asks again and again whether a run is done, between all else that it does. A
 * sleeping thread takes 50 to 100 us to be woken up, a third of a run; longer runs can wait for that.
 */
const POLL_MS = 2

export type CudaLane = LaneDevice & {
  /** The stream that the sessions of its runs must use. */
  readonly stream: Pointer
}

export type CudaLaneOptions = {
  /** A kernel for the copy of the inputs, where there are kernels. */
  readonly copyIn?: CopyIn | undefined
  /** Milliseconds, monotonic. */
  readonly now?: () => number
}

/**
 * Captured CUDA graphs on a stream of their own: copies in, the session's kernels, copies out, begun by one
 * call that takes some 15 us of the calling thread.
 * @throws {RankError} ENGINE_UNAVAILABLE, also from its functions, with what CUDA says
 */
export function openCudaLane(
  library: string,
  runNow: (args: RunArguments) => void,
  { copyIn, now = () => performance.now() }: CudaLaneOptions = {},
): CudaLane {
  const { bind, check } = bindCudaRuntime(library)
  const P = 'void*'
  const SIZE = 'size_t'
  const createStream = bind('cudaStreamCreateWithFlags', P, 'uint32_t')
  const destroyStream = bind('cudaStreamDestroy', P)
  const createEvent = bind('cudaEventCreateWithFlags', P, 'uint32_t')
  const destroyEvent = bind('cudaEventDestroy', P)
  const recordEvent = bind('cudaEventRecord', P, P)
  const queryEvent = bind('cudaEventQuery', P)
  const awaitEvent = bind('cudaEventSynchronize', P)
  const synchronize = bind('cudaStreamSynchronize', P)
  const beginCapture = bind('cudaStreamBeginCapture', P, 'int')
  const endCapture = bind('cudaStreamEndCapture', P, P)
  const nodesOf = bind('cudaGraphGetNodes', P, P, P)
  const typeOf = bind('cudaGraphNodeGetType', P, P)
  const instantiate = bind('cudaGraphInstantiate', P, P, 'uint64_t')
  const destroyGraph = bind('cudaGraphDestroy', P)
  const destroyExec = bind('cudaGraphExecDestroy', P)
  const upload = bind('cudaGraphUpload', P, P)
  const launch = bind('cudaGraphLaunch', P, P)
  const copy = bind('cudaMemcpyAsync', P, P, SIZE, 'int', P)
  const set2d = bind('cudaMemset2DAsync', P, SIZE, 'int', SIZE, SIZE, P)
  const malloc = bind('cudaMalloc', P, SIZE)
  const free = bind('cudaFree', P)
  const hostAlloc = bind('cudaHostAlloc', P, SIZE, 'uint32_t')
  const freeHost = bind('cudaFreeHost', P)

  const give = (call: (out: BigUint64Array) => number): Pointer => {
    const out = new BigUint64Array(1)
    check(call(out))
    return out[0] ?? 0n
  }
  const stream = give((out) => createStream(out, STREAM_NON_BLOCKING))
  const event = give((out) => createEvent(out, EVENT_BLOCKING_SYNC | EVENT_DISABLE_TIMING))
  const begin = (to: Pointer, from: Pointer, bytes: number) =>
    check(copy(to, from, bytes, MEMCPY_DEFAULT, stream))

  const beginInputs = ({ at, host }: Mirror, bytes: number) => {
    if (copyIn === undefined) return begin(at, host, bytes)
    const failure = copyIn(at, host, bytes, stream)
    if (failure !== null) throw new RankError('ENGINE_UNAVAILABLE', `CUDA: ${failure}`)
  }

  /** What `work` puts on the stream, as a graph of which nothing has run. */
  const capture = (work: () => void): Pointer => {
    check(beginCapture(stream, CAPTURE_RELAXED))
    try {
      work()
    } catch (error) {
      // Ends a capture that has failed, too, and leaves the stream as it was.
      const graph = new BigUint64Array(1)
      endCapture(stream, graph)
      destroyGraph(graph[0])
      throw error
    }
    return give((out) => endCapture(stream, out))
  }

  /**
   * A function of the host among the nodes is one that frees what the captured run used: it must not run
   * again.
   */
  const checkNodes = (graph: Pointer) => {
    const count = new BigUint64Array(1)
    check(nodesOf(graph, null, count))
    const nodes = new BigUint64Array(Number(count[0]))
    check(nodesOf(graph, nodes, count))
    const type = new Int32Array(1)
    for (const node of nodes) {
      check(typeOf(node, type))
      if (type[0] !== NODE_HOST) continue
      throw new RankError('ENGINE_UNAVAILABLE', 'the graph calls the host: it cannot be replayed')
    }
  }

  const done = (): Promise<void> =>
    new Promise((resolve, reject) => {
      const settle = (code: number) => {
        try {
          check(code)
          resolve()
        } catch (error) {
          reject(error)
        }
      }
      const end = now() + POLL_MS
      const poll = () => {
        const code = queryEvent(event)
        if (code !== NOT_READY) settle(code)
        else if (now() < end) setImmediate(poll)
        else callAsync<number>(awaitEvent, event).then(settle, reject)
      }
      setImmediate(poll)
    })

  return {
    stream,
    mirror(bytes): Mirror {
      const at = give((out) => malloc(out, bytes))
      try {
        const host = give((out) => hostAlloc(out, bytes, HOST_ALLOC_PORTABLE))
        return { at, host, bytes: viewOf(host, bytes) }
      } catch (error) {
        free(at)
        throw error
      }
    },
    release({ at, host }) {
      free(at)
      freeHost(host)
    },
    copyRows(to, toPitch, from, fromPitch, width, rows) {
      // One by one: the driver's own copy of rows ran at a third of the memory's speed.
      for (let row = 0; row < rows; row++) {
        begin(to + BigInt(row * toPitch), from + BigInt(row * fromPitch), width)
      }
    },
    zeroRows: (to, pitch, width, rows) => check(set2d(to, pitch, 0, width, rows, stream)),
    async prepare(args, { inputs, inputBytes, results, resultBytes }): Promise<Replay> {
      begin(inputs.at, inputs.host, inputBytes)
      for (let run = 0; run < WARM_RUNS; run++) runNow(args)
      check(synchronize(stream))
      const graph = capture(() => {
        beginInputs(inputs, inputBytes)
        runNow(args)
        if (results !== undefined) begin(results.host, results.at, resultBytes)
      })
      let exec: Pointer
      try {
        checkNodes(graph)
        exec = give((out) => instantiate(out, graph, 0))
      } finally {
        destroyGraph(graph)
      }
      check(upload(exec, stream))
      return {
        run() {
          check(launch(exec, stream))
          check(recordEvent(event, stream))
          return done()
        },
        release: () => destroyExec(exec),
      }
    },
    close() {
      destroyEvent(event)
      destroyStream(stream)
    },
  }
}
