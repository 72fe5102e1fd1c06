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

export type LaneParts = ShapesOptions & {
  readonly thread: LaneOptions
  readonly store: KvStore
  readonly blocks: Blocks
}

/**
 * One thread with captured CUDA graphs and the fixed memory that they read and write: one job at a
 * time, given while it `isIdle`.
 */
export type Lane = {
  /** A job is under way. */
  isBusy(): boolean
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
  /** Brings K/V home, and says whether the lane must load it. */
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

  let current: Job | undefined
  let isPreparing = false
  let gone: RankError | undefined
  let idle = () => {}
  /** What the lane's own K/V holds, once the thread has got there. */
  let loaded: { readonly entry: KvEntry; readonly n: number } | undefined

  const start = async (job: Job) => {
    current = job
    isPreparing = true
    try {
      const load = await job.prepare()
      if (gone !== undefined) throw gone
      const { shape, inputs, candidates: m } = job
      const bytes = m * tasks * Float32Array.BYTES_PER_ELEMENT
      const message = { kind: 'run', shape: shape.id, inputs, bytes } as const
      post(load === undefined ? message : { ...message, load }, [inputs.buffer as ArrayBuffer])
    } catch (error) {
      settle(({ reject }) => reject(error))
    } finally {
      isPreparing = false
    }
  }
  const settle = (how: (job: Job) => void) => {
    const job = current
    if (job === undefined) return
    current = undefined
    job.done()
    how(job)
    idle()
  }
  worker.on('message', (message: FromLane) => {
    settle(({ resolve, reject }) => {
      if (message.kind === 'error') {
        loaded = undefined
        reject(new RankError('MODEL_CONTRACT', `inference failed: ${message.message}`))
      } else {
        const { buffer, byteOffset, byteLength } = message.logits
        resolve(new Float32Array(buffer, byteOffset, byteLength / 4))
      }
    })
  })
  const fail = (why: string) => {
    gone ??= new RankError('WORKER_CRASHED', `the lane's thread ended: ${why}`)
    // What a job holds is known once it has been prepared: `start` settles it then.
    if (!isPreparing) settle(({ reject }) => reject(gone))
  }
  worker.on('error', (error) => fail(error instanceof Error ? error.message : String(error)))
  worker.on('exit', () => fail('exited'))

  const submit = (job: Omit<Job, 'resolve' | 'reject'>): Promise<Float32Array> =>
    new Promise((resolve, reject) => {
      const { signal } = job
      const refuse = (why: unknown) => {
        job.done()
        reject(why)
      }
      if (gone !== undefined) return refuse(gone)
      if (signal?.aborted) return refuse(signal.reason)
      if (current !== undefined) return refuse(new Error('the lane is not idle'))
      const onAbort = () => reject(signal?.reason)
      signal?.addEventListener('abort', onAbort, { once: true })
      const done = () => {
        signal?.removeEventListener('abort', onAbort)
        job.done()
      }
      void start({ ...job, done, resolve, reject })
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
    isBusy: () => current !== undefined,
    isIdle: () => gone === undefined && current === undefined,
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
        if (current === undefined) resolve()
      })
      gone ??= new RankError('WORKER_CRASHED', 'the engine is closed')
      await worker.terminate()
      shapes.release()
    },
  }
}
