import { RankError } from '../../errors.js'
import { writeTimes } from '../../tokens.js'
import type { RankUser } from '../engine.js'
import type { Blocks } from './blocks.js'
import type { KvEntry, KvStore } from './kv-store.js'
import type { Replay } from './lane-device.js'
import { createShapes, type Shape, type ShapesOptions } from './lane-shapes.js'
import { OrtError } from './ort-error.js'

export type LaneParts = ShapesOptions & {
  readonly store: KvStore
  readonly blocks: Blocks
}

/**
 * Runs of fixed shapes over fixed memory, on a GPU captured CUDA graphs: one job at a time, given while it
 * `isIdle`.
 */
export type Lane = {
  /** A job is under way. */
  isBusy(): boolean
  /** True while it is open and has nothing to do. */
  isIdle(): boolean
  /** Undefined where no shape holds so much. Otherwise as the engine's. */
  score(
    entry: KvEntry,
    candidates: Int32Array,
    queryTime: number,
    signal?: AbortSignal,
  ): Promise<Float32Array> | undefined
  rank(user: RankUser, signal?: AbortSignal): Promise<Float32Array> | undefined
  /** Prepares every shape; none is used before. The calling thread waits for one shape at a time. */
  capture(onShape: () => void): Promise<void>
  close(): Promise<void>
}

type Job = {
  readonly shape: Shape
  readonly candidates: number
  /** Puts the inputs where the run takes them from; a promise where K/V must come home first. */
  readonly prepare: () => Promise<void> | undefined
  readonly done: () => void
}

/** The lane's memory and its shapes. Nothing is captured yet. */
export async function createLane(parts: LaneParts): Promise<Lane> {
  const { store, blocks, manifest, device } = parts
  const { slots } = manifest.embedding
  const tasks = manifest.config.tasks.length
  const shapes = await createShapes(parts)
  const { kvAt, pitch, rowBytes, regions, longest } = shapes
  const inputs = shapes.inputs.bytes
  const replays = new Map<Shape, Replay>()

  let isBusy = false
  let isClosed = false
  let idle = () => {}
  /** What the lane's own K/V holds, once what was begun is done. */
  let loaded: { readonly entry: KvEntry; readonly n: number } | undefined

  const failure = (error: unknown): unknown => {
    if (!(error instanceof OrtError)) return error
    return new RankError('MODEL_CONTRACT', `inference failed: ${error.message}`, { cause: error })
  }

  const execute = async (job: Job): Promise<Float32Array> => {
    const replay = replays.get(job.shape)
    if (replay === undefined) throw new Error('this shape was not prepared')
    try {
      const coming = job.prepare()
      if (coming !== undefined) await coming
      await replay.run()
      const { buffer, byteOffset } = shapes.logits.bytes
      return new Float32Array(buffer, byteOffset, job.candidates * tasks).slice()
    } catch (error) {
      loaded = undefined
      throw failure(error)
    }
  }

  const submit = (job: Job, signal: AbortSignal | undefined): Promise<Float32Array> => {
    const refuse = (why: unknown) => {
      job.done()
      return Promise.reject(why)
    }
    if (isClosed) return refuse(new RankError('WORKER_CRASHED', 'the engine is closed'))
    if (signal?.aborted) return refuse(signal.reason)
    if (isBusy) return refuse(new Error('the lane is not idle'))
    isBusy = true
    return new Promise((resolve, reject) => {
      // The caller may go, the run stays: its memory is free when it has ended.
      const onAbort = () => reject(signal?.reason)
      signal?.addEventListener('abort', onAbort, { once: true })
      const settle = () => {
        signal?.removeEventListener('abort', onAbort)
        isBusy = false
        job.done()
        idle()
      }
      execute(job).then(
        (logits) => {
          settle()
          resolve(logits)
        },
        (error) => {
          settle()
          reject(error)
        },
      )
    })
  }

  /** A view of the inputs that begin at `name`. */
  const offset = ({ packed }: Shape, name: string) =>
    inputs.byteOffset + (packed.offsets.get(name) ?? 0)
  const int64 = (shape: Shape, name: string, length: number) =>
    new BigInt64Array(inputs.buffer, offset(shape, name), length)
  const int32 = (shape: Shape, name: string, length: number) =>
    new Int32Array(inputs.buffer, offset(shape, name), length)
  /** Zeros behind them: the memory has what the run before read. */
  const setRows = (shape: Shape, name: string, rows: Int32Array, length: number) => {
    int32(shape, name, length).fill(0, rows.length).set(rows)
  }

  /** Begins to copy K/V to the end of the lane's rows, zeros before it: distances count from the end. */
  const load = (entry: KvEntry, n: number) => {
    const grid = store.grid(entry)
    if (grid === undefined) throw new Error('regions of different widths')
    const padBytes = (n - entry.tokens) * rowBytes
    loaded = { entry, n }
    if (padBytes > 0) device.zeroRows(kvAt, pitch, padBytes, regions)
    const to = kvAt + BigInt(padBytes)
    device.copyRows(to, pitch, grid.address, grid.pitch, entry.tokens * rowBytes, regions)
  }

  const scoreOn = (
    shape: Shape,
    entry: KvEntry,
    rows: Int32Array,
    queryTime: number,
    signal: AbortSignal | undefined,
  ) => {
    const write = () => {
      int64(shape, 'query_time', 1)[0] = BigInt(queryTime)
      const times = int64(shape, 'times', shape.n).fill(0n, 0, shape.n - entry.tokens)
      times.set(entry.block.times.subarray(0, entry.tokens), shape.n - entry.tokens)
      setRows(shape, 'rows', rows, shape.m * slots)
    }
    let isInRun = false
    store.hold(entry)
    const job: Job = {
      shape,
      candidates: rows.length / slots,
      prepare() {
        write()
        if (loaded?.entry === entry && loaded.n === shape.n) return undefined
        return blocks.beginRun(entry.block).then(() => {
          isInRun = true
          load(entry, shape.n)
        })
      },
      done() {
        if (isInRun) blocks.endRun(entry.block)
        store.release(entry)
      },
    }
    return submit(job, signal)
  }

  const rankOn = (
    shape: Shape,
    { history, candidates: rows, queryTime }: RankUser,
    signal: AbortSignal | undefined,
  ) => {
    const job: Job = {
      shape,
      candidates: rows.length / slots,
      prepare() {
        int64(shape, 'query_times', 1)[0] = BigInt(queryTime)
        int64(shape, 'lengths', 1)[0] = BigInt(history.length)
        writeTimes(int64(shape, 'times', shape.n).fill(0n, history.length), history.times)
        setRows(shape, 'actions', history.actions, shape.n)
        setRows(shape, 'rows', history.rows, shape.n * slots)
        setRows(shape, 'candidate_rows', rows, shape.m * slots)
        return undefined
      },
      done() {},
    }
    return submit(job, signal)
  }

  const fit = (kind: 'score' | 'rank', n: number, m: number) => {
    const shape = shapes.fit(kind, n, m)
    return shape !== undefined && replays.has(shape) ? shape : undefined
  }

  return {
    isBusy: () => isBusy,
    isIdle: () => !isClosed && !isBusy,
    score(entry, rows, queryTime, signal) {
      const shape = fit('score', entry.tokens, rows.length / slots)
      if (shape === undefined || store.grid(entry) === undefined) return undefined
      return scoreOn(shape, entry, rows, queryTime, signal)
    },
    rank(user, signal) {
      const shape = fit('rank', user.history.length, user.candidates.length / slots)
      return shape === undefined ? undefined : rankOn(shape, user, signal)
    },
    async capture(onShape) {
      inputs.fill(0)
      device.zeroRows(kvAt, pitch, longest * rowBytes, regions)
      // The largest first: the arena then has its final size.
      for (const shape of shapes.all.toReversed()) {
        const replay = await device.prepare(shape.args, {
          inputs: shapes.inputs,
          inputBytes: shape.packed.bytes,
          results: shape.isDirect ? undefined : shapes.logits,
          resultBytes: shape.resultBytes,
        })
        replays.set(shape, replay)
        // Once before the first request, which would wait for what CUDA puts off until then.
        await replay.run()
        onShape()
      }
    },
    async close() {
      isClosed = true
      await new Promise<void>((resolve) => {
        idle = resolve
        if (!isBusy) resolve()
      })
      for (const replay of replays.values()) replay.release()
      shapes.release()
    },
  }
}
