import { type InferenceSession, Tensor } from 'onnxruntime-node'
import { RankError } from '../../errors.js'
import type { Manifest } from '../../manifest.js'
import { type HistoryTokens, sliceTokens, writeTimes, zeroTokens } from '../../tokens.js'
import { createKvCodec, type KvCodec } from '../codec/codec.js'
import type { KvCodecName } from '../codec/graphs.js'
import type { EncodedKv, RankUser, WarmUp } from '../engine.js'
import { float16Tensor } from '../float16.js'
import { arrayWidths, kvShape } from '../kv-shape.js'
import { packUsers, splitLogits } from '../rank-batch.js'
import { type KvArray, type KvEntry, KvStore } from './kv-store.js'
import type { Answer, Job } from './protocol.js'
import type { Sessions } from './sessions.js'

/**
 * History tokens per prefill run. Chunks bound the (H, chunk, n) score matrix and skip the part of
 * the causal square that lies behind a chunk; smaller ones run more matrix products of low height.
 */
const PREFILL_CHUNK_TOKENS = 256

type Feeds = Record<string, Tensor>

/** Runs jobs on one set of sessions, and keeps their K/V. Strictly one job at a time. */
export function createRunner(sessions: Sessions, manifest: Manifest) {
  const { config, precision } = manifest
  const { slots } = manifest.embedding
  const store = new KvStore(config, precision)
  const codecs = new Map<KvCodecName, KvCodec>()
  const kWidth = config.heads * config.dqk
  const vWidth = config.heads * config.dv

  const kvTensor = (array: KvArray | undefined, rows: number, width: number): Tensor => {
    const data = (array ?? new Float32Array(0)).subarray(0, rows * width)
    return data instanceof Float32Array
      ? new Tensor('float32', data, [rows, width])
      : float16Tensor(data, [rows, width])
  }

  const noRow = (width: number): KvArray =>
    precision === 'fp16' ? new Uint16Array(width) : new Float32Array(width)

  const prefillChunk = async (entry: KvEntry, start: number, chunk: HistoryTokens) => {
    const end = start + chunk.length
    const { block } = entry
    writeTimes(block.times, chunk.times, start)
    const feeds: Feeds = {
      rows: new Tensor('int32', chunk.rows, [chunk.length, slots]),
      actions: new Tensor('int32', chunk.actions, [chunk.length]),
      times: new Tensor('int64', block.times.subarray(0, end), [end]),
    }
    for (let i = 0; i < config.layers; i++) {
      feeds[`past_k.${i}`] = kvTensor(block.k[i], start, kWidth)
      feeds[`past_v.${i}`] = kvTensor(block.v[i], start, vWidth)
    }
    const out = await run(sessions.prefill, feeds)
    for (let i = 0; i < config.layers; i++) {
      copyInto(block.k[i], output(out, `k.${i}`), start * kWidth)
      copyInto(block.v[i], output(out, `v.${i}`), start * vWidth)
    }
  }

  const prefill = async (job: Extract<Job, { kind: 'prefill' }>): Promise<Answer['prefill']> => {
    const kept = job.past?.tokens ?? 0
    const { entry, bytes } = store.extend(job.handle, kept + job.history.length, job.past)
    try {
      for (let start = 0; start < job.history.length; start += PREFILL_CHUNK_TOKENS) {
        const end = Math.min(start + PREFILL_CHUNK_TOKENS, job.history.length)
        await prefillChunk(entry, kept + start, sliceTokens(job.history, start, end))
      }
    } catch (error) {
      store.release(job.handle)
      throw error
    }
    return { bytes }
  }

  /** Rows (m, slots) against the handle's K and V, as `score` and `encode` take them. */
  const rowFeeds = (handle: number, candidates: Int32Array, queryTime: number): Feeds => {
    const { block, tokens } = store.get(handle)
    const time = BigInt64Array.of(BigInt(queryTime))
    // ONNX Runtime's matrix product stops the process (SIGFPE) when n is 0: a token without K and V,
    // which adds exact zeros, stands for no history.
    const n = Math.max(tokens, 1)
    const rowsOf = (array: KvArray | undefined, width: number) =>
      kvTensor(tokens === 0 ? noRow(width) : array, n, width)
    const feeds: Feeds = {
      rows: new Tensor('int32', candidates, [candidates.length / slots, slots]),
      times: new Tensor('int64', tokens === 0 ? time : block.times.subarray(0, n), [n]),
      query_time: new Tensor('int64', time, [1]),
    }
    for (let i = 0; i < config.layers; i++) {
      feeds[`k.${i}`] = rowsOf(block.k[i], kWidth)
      feeds[`v.${i}`] = rowsOf(block.v[i], vWidth)
    }
    return feeds
  }

  const score = async (handle: number, candidates: Int32Array, queryTime: number) => {
    if (candidates.length === 0) return new Float32Array(0)
    const feeds = rowFeeds(handle, candidates, queryTime)
    return float32(output(await run(sessions.score, feeds), 'logits'))
  }

  const encode = async (job: Extract<Job, { kind: 'encode' }>): Promise<Answer['encode']> => {
    const feeds = rowFeeds(job.handle, job.row, job.queryTime)
    return { user: float32(output(await run(headOf(sessions.encode), feeds), 'user')) }
  }

  const retrieve = async (job: Extract<Job, { kind: 'retrieve' }>): Promise<Answer['retrieve']> => {
    const { user, chunk } = job
    const number = (value: number) => new Tensor('int64', BigInt64Array.of(BigInt(value)), [1])
    const out = await run(headOf(sessions.retrieve), {
      user: new Tensor('float32', user, [1, user.length]),
      from: number(chunk.from),
      count: number(chunk.count),
      excluded: new Tensor('int64', chunk.excluded, [chunk.excluded.length]),
      k: number(chunk.k),
    })
    const scores = float32(output(out, 'scores'))
    const { data: places } = output(out, 'places')
    if (places instanceof BigInt64Array) return { best: { scores, places } }
    throw new RankError('MODEL_CONTRACT', 'places must be int64')
  }

  const rank = async (users: readonly RankUser[]): Promise<Float32Array[]> => {
    if (users.length === 0) return []
    const batch = packUsers(users, slots)
    const { count, n, m } = batch
    const out = await run(sessions.rank, {
      rows: new Tensor('int32', batch.rows, [count, n, slots]),
      actions: new Tensor('int32', batch.actions, [count, n]),
      times: new Tensor('int64', batch.times, [count, n]),
      lengths: new Tensor('int64', batch.lengths, [count]),
      candidate_rows: new Tensor('int32', batch.candidateRows, [count, m, slots]),
      query_times: new Tensor('int64', batch.queryTimes, [count]),
    })
    return splitLogits(float32(output(out, 'logits')), batch)
  }

  const warmUp = async ({ historyTokens, candidates }: WarmUp): Promise<null> => {
    const handle = -1
    for (const n of historyTokens) {
      const history = zeroTokens(n, slots)
      await prefill({ kind: 'prefill', handle, history })
      for (const m of candidates) await score(handle, new Int32Array(m * slots), 0)
      store.release(handle)
    }
    return null
  }

  const codecOf = (name: KvCodecName): KvCodec => {
    const codec = codecs.get(name) ?? createKvCodec(name, precision, arrayWidths(kvShape(config)))
    codecs.set(name, codec)
    return codec
  }

  const importKv = async (handle: number, kv: EncodedKv): Promise<Answer['import']> => {
    const bytes = await store.import(handle, kv, (planes, arrays) =>
      codecOf(kv.codec).decode(planes, arrays),
    )
    return { bytes }
  }

  return {
    async run(job: Job): Promise<Answer[Job['kind']]> {
      switch (job.kind) {
        case 'prefill':
          return prefill(job)
        case 'score':
          return { logits: await score(job.handle, job.candidates, job.queryTime) }
        case 'rank':
          return { logits: await rank(job.users) }
        case 'encode':
          return encode(job)
        case 'retrieve':
          return retrieve(job)
        case 'export':
          return { pages: store.export(job.handle, job.start) }
        case 'import':
          return importKv(job.handle, job.kv)
        case 'warmUp':
          return warmUp(job.shapes)
      }
    },
    release: (handle: number) => store.release(handle),
    async close(): Promise<void> {
      for (const codec of codecs.values()) await codec.close()
    },
  }
}

async function run(
  session: InferenceSession,
  feeds: Feeds,
): Promise<InferenceSession.OnnxValueMapType> {
  try {
    return await session.run(feeds)
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RankError('MODEL_CONTRACT', `inference failed: ${why}`, { cause })
  }
}

/** A graph of the retrieval head. */
function headOf(session: InferenceSession | undefined): InferenceSession {
  if (session !== undefined) return session
  throw new RankError('MODEL_CONTRACT', 'the bundle has no retrieval head')
}

function output(values: InferenceSession.OnnxValueMapType, name: string): Tensor {
  const value = values[name]
  if (!(value instanceof Tensor)) throw new RankError('MODEL_CONTRACT', `no output tensor ${name}`)
  return value
}

function float32({ data }: Tensor): Float32Array {
  if (data instanceof Float32Array) return data
  throw new RankError('MODEL_CONTRACT', 'outputs must be float32')
}

/** Writes an output behind `start`. A float16 output is a Uint16Array or, on Node 24, a Float16Array. */
function copyInto(to: KvArray | undefined, { data }: Tensor, start: number): void {
  if (to instanceof Float32Array && data instanceof Float32Array) to.set(data, start)
  else if (to instanceof Uint16Array && ArrayBuffer.isView(data)) {
    to.set(new Uint16Array(data.buffer, data.byteOffset, data.byteLength / 2), start)
  }
}
