import { Worker } from 'node:worker_threads'
import { RankError } from '../../errors.js'
import { writeTimes } from '../../tokens.js'
import type { RankUser } from '../engine.js'
import type { Blocks } from './blocks.js'
import type { KvEntry, KvStore } from './kv-store.js'
import { createShapes, type Shape, type ShapesOptions } from './lane-shapes.js'
import type { FromLane, LaneLoad, LaneOptions, ToLane } from './lane-worker.js'

/** Runs before ONNX Runtime has captured a shape: two to settle its memory, one to capture. */
const CAPTURE_RUNS = 3
/** Jobs given to the thread before the first is back: it never waits for the next. */
const DEPTH = 2

export type LaneParts = ShapesOptions & {
  readonly thread: LaneOptions
  readonly store: KvStore
  readonly blocks: Blocks
}

/** One thread with captured CUDA graphs and the fixed memory that they read and write. */
export type Lane = {
  /** Jobs under way or waiting. */
  pending(): number
  /** True while its thread lives and has nothing to do. */
  isIdle(): boolean
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
  const { store, blocks, manifest } = parts
  const { slots } = manifest.embedding
  const tasks = manifest.config.tasks.length
  // Before the thread, which would keep the process if there is no memory for them.
  const messages: ToLane[] = []
  const shapes = await createShapes(parts, (shape, args) =>
    messages.push({ kind: 'shape', shape, args }),
  )
  const { kvAt, pitch, rowBytes, regions, longest } = shapes
  const worker = new Worker(new URL('./lane-worker.js', import.meta.url), {
    workerData: parts.thread,
  })
  const post = (message: ToLane, transfer: ArrayBuffer[] = []) =>
    worker.postMessage(message, transfer)
  for (const message of messages) post(message)

  const queue: Job[] = []
  const underWay = new Map<number, Job>()
  let nextId = 0
  let isPreparing = false
  /** The job whose `prepare` runs: it is settled behind that, for what it holds is known then. */
  let preparing: number | undefined
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
      preparing = id
      try {
        const load = await job.prepare()
        if (gone !== undefined) throw gone
        const { shape, inputs, candidates: m } = job
        const bytes = m * tasks * Float32Array.BYTES_PER_ELEMENT
        const message = { kind: 'run', id, shape: shape.id, inputs, bytes } as const
        post(load === undefined ? message : { ...message, load }, [inputs.buffer as ArrayBuffer])
      } catch (error) {
        settle(id, (each) => each.reject(error))
      } finally {
        preparing = undefined
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
    for (const id of [...underWay.keys()]) {
      if (id !== preparing) settle(id, (job) => job.reject(gone))
    }
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
      const { signal } = job
      if (signal?.aborted) {
        job.done()
        reject(signal.reason)
        return
      }
      const onAbort = () => reject(signal?.reason)
      signal?.addEventListener('abort', onAbort, { once: true })
      const done = () => {
        signal?.removeEventListener('abort', onAbort)
        job.done()
      }
      queue.push({ ...job, done, resolve, reject })
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
    writeTimes(new BigInt64Array(inputs.buffer, at('times'), shape.n), history.times)
    new Int32Array(inputs.buffer, at('actions'), shape.n).set(history.actions)
    new Int32Array(inputs.buffer, at('rows'), shape.n * slots).set(history.rows)
    new Int32Array(inputs.buffer, at('candidate_rows'), rows.length).set(rows)
    const prepare = async () => undefined
    return submit({ shape, inputs, candidates: rows.length / slots, prepare, done() {}, signal })
  }

  return {
    pending: () => queue.length + underWay.size,
    isIdle: () => gone === undefined && queue.length + underWay.size === 0,
    score(entry, rows, queryTime, signal) {
      const shape = shapes.fit('score', entry.tokens, rows.length / slots)
      if (shape === undefined || store.grid(entry) === undefined) return undefined
      return scoreOn(shape, entry, rows, queryTime, signal)
    },
    rank(user, signal) {
      const shape = shapes.fit('rank', user.history.length, user.candidates.length / slots)
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
      for (const shape of shapes.all.toReversed()) {
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
      shapes.release()
    },
  }
}
