import { Worker } from 'node:worker_threads'
import { RankError } from '../../errors.js'
import type { Manifest } from '../../manifest.js'
import type { RankUser } from '../engine.js'
import type { Blocks } from './blocks.js'
import type { KvEntry, KvStore } from './kv-store.js'
import type { FromLane, LaneLoad, LaneOptions, LaneShape, ToLane } from './lane-worker.js'
import type { TensorMemory } from './memory.js'
import type { Ort, Pointer } from './ort.js'
import { ELEMENT, type Session, type Values } from './sessions.js'

/** Values begin at multiples of this inside the lane's packed inputs. */
const ALIGN_BYTES = 256
/** Runs before ONNX Runtime has captured a shape: two to settle its memory, one to capture. */
const CAPTURE_RUNS = 3
/** Jobs given to the thread before the first is back: it never waits for the next. */
const DEPTH = 2

export type LaneParts = {
  readonly ort: Ort
  readonly thread: LaneOptions
  readonly memory: TensorMemory
  readonly sessions: { readonly score: Session; readonly rank: Session }
  readonly store: KvStore
  readonly blocks: Blocks
  readonly manifest: Manifest
  /** Lengths of the shapes that are captured, ascending; a run is padded to the next. */
  readonly historyTokens: readonly number[]
  readonly candidates: readonly number[]
}

/** One thread with captured CUDA graphs and the fixed memory that they read and write. */
export type Lane = {
  /** Jobs under way or waiting. */
  pending(): number
  /** Undefined where no shape holds so much. Otherwise as the engine's. */
  score(
    entry: KvEntry,
    candidates: Int32Array,
    queryTime: number,
    signal?: AbortSignal,
  ): Promise<Float32Array> | undefined
  rank(user: RankUser, signal?: AbortSignal): Promise<Float32Array> | undefined
  /** Runs every shape until it is captured. */
  capture(onShape: () => void): Promise<void>
  close(): Promise<void>
}

type Field = { readonly name: string; readonly type: number; readonly dims: readonly number[] }
type Packed = { readonly offsets: ReadonlyMap<string, number>; readonly bytes: number }
type Shape = {
  readonly id: number
  readonly n: number
  readonly m: number
  readonly packed: Packed
}
type Job = {
  readonly shape: Shape
  readonly inputs: Uint8Array
  readonly candidates: number
  /** Runs before its turn: brings K/V home, and says whether the lane must load it. */
  readonly prepare: () => Promise<LaneLoad | undefined>
  readonly done: () => void
  readonly signal: AbortSignal | undefined
  readonly resolve: (logits: Float32Array) => void
  readonly reject: (error: unknown) => void
}

/** Starts a lane: its thread, its fixed memory, its shapes. Nothing is captured yet. */
export async function createLane(parts: LaneParts): Promise<Lane> {
  const { ort, memory, sessions, store, blocks, manifest, historyTokens, candidates } = parts
  const { config } = manifest
  const { slots } = manifest.embedding
  const tasks = config.tasks.length
  const elementBytes = manifest.precision === 'fp16' ? 2 : 4
  const rowBytes = config.heads * config.dqk * elementBytes
  const regions = 2 * config.layers
  const longest = Math.max(...historyTokens)
  const pitch = align(longest * rowBytes)

  const scoreFields = (n: number, m: number): Field[] => [
    { name: 'query_time', type: ELEMENT.int64, dims: [1] },
    { name: 'times', type: ELEMENT.int64, dims: [n] },
    { name: 'rows', type: ELEMENT.int32, dims: [m, slots] },
  ]
  const rankFields = (n: number, m: number): Field[] => [
    { name: 'query_times', type: ELEMENT.int64, dims: [1] },
    { name: 'lengths', type: ELEMENT.int64, dims: [1] },
    { name: 'times', type: ELEMENT.int64, dims: [1, n] },
    { name: 'actions', type: ELEMENT.int32, dims: [1, n] },
    { name: 'rows', type: ELEMENT.int32, dims: [1, n, slots] },
    { name: 'candidate_rows', type: ELEMENT.int32, dims: [1, m, slots] },
  ]

  const most = Math.max(...candidates)
  const inputBytes = Math.max(
    pack(scoreFields(longest, most)).bytes,
    pack(rankFields(longest, most)).bytes,
  )
  const kvAt = await memory.allocate(regions * pitch)
  const inputsAt = await memory.allocate(inputBytes)
  const logitsAt = await memory.allocate(most * tasks * Float32Array.BYTES_PER_ELEMENT)
  const values: Pointer[] = []
  const runOptions: Pointer[] = []

  const value = (at: Pointer, type: number, dims: readonly number[]): Pointer => {
    const bytes = dims.reduce((product, dim) => product * dim, bytesOf(type))
    const shape = BigInt64Array.from(dims, BigInt)
    const made = ort.CreateTensorWithDataAsOrtValue(
      memory.info,
      at,
      bytes,
      shape,
      dims.length,
      type,
    )
    values.push(made)
    return made
  }
  const kvValues = (n: number): Values => {
    const type = manifest.precision === 'fp16' ? ELEMENT.float16 : ELEMENT.float32
    const named: { [name: string]: Pointer } = {}
    for (let r = 0; r < regions; r++) {
      const name = `${r % 2 === 0 ? 'k' : 'v'}.${r >> 1}`
      named[name] = value(kvAt + BigInt(r * pitch), type, [n, config.heads * config.dqk])
    }
    return named
  }

  const worker = new Worker(new URL('./lane-worker.js', import.meta.url), {
    workerData: parts.thread,
  })
  const post = (message: ToLane, transfer: ArrayBuffer[] = []) =>
    worker.postMessage(message, transfer)
  let shapes = 0
  const addShape = (
    session: Session,
    fields: readonly Field[],
    n: number,
    m: number,
    kv: Values,
    logitDims: readonly number[],
  ): Shape => {
    const id = shapes++
    const packed = pack(fields)
    const options = ort.CreateRunOptions()
    runOptions.push(options)
    // Graphs are told apart by this number; shapes differ, so every one has its own.
    ort.AddRunConfigEntry(options, 'gpu_graph_id', String(id + 1))
    const inputs = Object.fromEntries(
      fields.map(({ name, type, dims }) => [
        name,
        value(inputsAt + BigInt(packed.offsets.get(name) ?? 0), type, dims),
      ]),
    )
    const logits = value(logitsAt, ELEMENT.float32, logitDims)
    const bound = session.bind({ ...inputs, ...kv }, { logits }, options)
    const args: LaneShape = { ...bound, inputsAt, logitsAt }
    post({ kind: 'shape', shape: id, args })
    return { id, n, m, packed }
  }
  const scoreShapes: Shape[] = []
  const rankShapes: Shape[] = []
  for (const n of historyTokens) {
    const kv = kvValues(n)
    for (const m of candidates) {
      scoreShapes.push(addShape(sessions.score, scoreFields(n, m), n, m, kv, [m, tasks]))
      rankShapes.push(addShape(sessions.rank, rankFields(n, m), n, m, {}, [1, m, tasks]))
    }
  }
  /** The smallest shape that holds n and m: lengths ascend, candidates first. */
  const fit = (all: readonly Shape[], n: number, m: number) =>
    all.find((shape) => shape.n >= n && shape.m >= m)

  const queue: Job[] = []
  const underWay = new Map<number, Job>()
  let nextId = 0
  let isPreparing = false
  let gone: RankError | undefined
  let idle = () => {}
  /** What the lane's own K/V holds, once the thread has got there. */
  let loaded: { readonly entry: KvEntry; readonly n: number } | undefined

  const pump = async () => {
    if (isPreparing) return
    isPreparing = true
    for (let job = queue[0]; job !== undefined && underWay.size < DEPTH; job = queue[0]) {
      queue.shift()
      if (job.signal?.aborted) {
        job.done()
        continue
      }
      const id = nextId++
      underWay.set(id, job)
      try {
        const load = await job.prepare()
        const { shape, inputs, candidates: m } = job
        const bytes = m * tasks * Float32Array.BYTES_PER_ELEMENT
        const message = { kind: 'run', id, shape: shape.id, inputs, bytes } as const
        post(load === undefined ? message : { ...message, load }, [inputs.buffer as ArrayBuffer])
      } catch (error) {
        settle(id, (each) => each.reject(error))
      }
    }
    isPreparing = false
    if (underWay.size === 0 && queue.length === 0) idle()
  }
  const settle = (id: number, how: (job: Job) => void) => {
    const job = underWay.get(id)
    if (job === undefined) return
    underWay.delete(id)
    job.done()
    how(job)
  }
  worker.on('message', (message: FromLane) => {
    settle(message.id, (job) => {
      if (message.kind === 'error') {
        loaded = undefined
        job.reject(new RankError('MODEL_CONTRACT', `inference failed: ${message.message}`))
      } else {
        const { buffer, byteOffset, byteLength } = message.logits
        job.resolve(new Float32Array(buffer, byteOffset, byteLength / 4))
      }
    })
    void pump()
  })
  const fail = (why: string) => {
    gone ??= new RankError('WORKER_CRASHED', `the lane's thread ended: ${why}`)
    for (const id of [...underWay.keys()]) settle(id, (job) => job.reject(gone))
    for (const job of queue.splice(0)) {
      job.done()
      job.reject(gone)
    }
    idle()
  }
  worker.on('error', (error) => fail(error instanceof Error ? error.message : String(error)))
  worker.on('exit', () => fail('exited'))

  const submit = (job: Omit<Job, 'resolve' | 'reject'>): Promise<Float32Array> =>
    new Promise((resolve, reject) => {
      if (gone !== undefined) {
        job.done()
        reject(gone)
        return
      }
      job.signal?.addEventListener('abort', () => reject(job.signal?.reason), { once: true })
      queue.push({ ...job, resolve, reject })
      void pump()
    })

  /** K/V at the end of the lane's rows, zeros before it: distances count from the end. */
  const loadOf = async (entry: KvEntry, n: number): Promise<LaneLoad | undefined> => {
    if (loaded?.entry === entry && loaded.n === n) return undefined
    await blocks.beginRun(entry.block)
    loaded = { entry, n }
    const grid = store.grid(entry)
    if (grid === undefined) throw new Error('regions of different widths')
    return {
      to: kvAt,
      toPitch: pitch,
      from: grid.address,
      fromPitch: grid.pitch,
      bytes: entry.tokens * rowBytes,
      padBytes: (n - entry.tokens) * rowBytes,
      regions,
    }
  }

  const scoreOn = (
    shape: Shape,
    entry: KvEntry,
    rows: Int32Array,
    queryTime: number,
    signal: AbortSignal | undefined,
  ) => {
    const inputs = new Uint8Array(shape.packed.bytes)
    const at = (name: string) => shape.packed.offsets.get(name) ?? 0
    new BigInt64Array(inputs.buffer, at('query_time'), 1)[0] = BigInt(queryTime)
    const times = new BigInt64Array(inputs.buffer, at('times'), shape.n)
    times.set(entry.block.times.subarray(0, entry.tokens), shape.n - entry.tokens)
    new Int32Array(inputs.buffer, at('rows'), rows.length).set(rows)
    store.hold(entry)
    let isInRun = false
    return submit({
      shape,
      inputs,
      candidates: rows.length / slots,
      async prepare() {
        const load = await loadOf(entry, shape.n)
        isInRun = load !== undefined
        return load
      },
      done() {
        if (isInRun) blocks.endRun(entry.block)
        store.release(entry)
      },
      signal,
    })
  }

  const rankOn = (
    shape: Shape,
    { history, candidates: rows, queryTime }: RankUser,
    signal: AbortSignal | undefined,
  ) => {
    const inputs = new Uint8Array(shape.packed.bytes)
    const at = (name: string) => shape.packed.offsets.get(name) ?? 0
    new BigInt64Array(inputs.buffer, at('query_times'), 1)[0] = BigInt(queryTime)
    new BigInt64Array(inputs.buffer, at('lengths'), 1)[0] = BigInt(history.length)
    new BigInt64Array(inputs.buffer, at('times'), shape.n).set(
      BigInt64Array.from(history.times, BigInt),
    )
    new Int32Array(inputs.buffer, at('actions'), shape.n).set(history.actions)
    new Int32Array(inputs.buffer, at('rows'), shape.n * slots).set(history.rows)
    new Int32Array(inputs.buffer, at('candidate_rows'), rows.length).set(rows)
    const prepare = async () => undefined
    return submit({ shape, inputs, candidates: rows.length / slots, prepare, done() {}, signal })
  }

  return {
    pending: () => (gone === undefined ? queue.length + underWay.size : Number.POSITIVE_INFINITY),
    score(entry, rows, queryTime, signal) {
      const shape = fit(scoreShapes, entry.tokens, rows.length / slots)
      if (shape === undefined || store.grid(entry) === undefined) return undefined
      return scoreOn(shape, entry, rows, queryTime, signal)
    },
    rank(user, signal) {
      const shape = fit(rankShapes, user.history.length, user.candidates.length / slots)
      return shape === undefined ? undefined : rankOn(shape, user, signal)
    },
    async capture(onShape) {
      const zeros = (shape: Shape) =>
        submit({
          shape,
          inputs: new Uint8Array(shape.packed.bytes),
          candidates: shape.m,
          prepare: async () => ({
            ...{ to: kvAt, toPitch: pitch, from: kvAt, fromPitch: pitch },
            ...{ bytes: 0, padBytes: longest * rowBytes, regions },
          }),
          done() {},
          signal: undefined,
        })
      // The largest first: the arena then has its final size.
      for (const shape of [...scoreShapes, ...rankShapes].reverse()) {
        for (let run = 0; run < CAPTURE_RUNS; run++) await zeros(shape)
        onShape()
      }
    },
    async close() {
      await new Promise<void>((resolve) => {
        idle = resolve
        if (underWay.size === 0 && queue.length === 0) resolve()
      })
      gone ??= new RankError('WORKER_CRASHED', 'the engine is closed')
      await worker.terminate()
      for (const each of values) ort.ReleaseValue(each)
      for (const each of runOptions) ort.ReleaseRunOptions(each)
      for (const each of [kvAt, inputsAt, logitsAt]) memory.free(each)
    },
  }
}

/** Values one behind the other. */
function pack(fields: readonly Field[]): Packed {
  const offsets = new Map<string, number>()
  let bytes = 0
  for (const { name, type, dims } of fields) {
    offsets.set(name, bytes)
    bytes = align(bytes + dims.reduce((product, dim) => product * dim, bytesOf(type)))
  }
  return { offsets, bytes }
}

function bytesOf(elementType: number): number {
  if (elementType === ELEMENT.int64) return 8
  return elementType === ELEMENT.float16 ? 2 : 4
}

function align(bytes: number): number {
  return Math.ceil(bytes / ALIGN_BYTES) * ALIGN_BYTES
}
