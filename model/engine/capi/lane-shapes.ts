import type { Manifest } from '../../manifest.js'
import type { KvPrecision } from '../codec/graphs.js'
import { KV_ELEMENT_BYTES } from '../kv-shape.js'
import type { LaneDevice } from './lane-device.js'
import type { TensorMemory } from './memory.js'
import type { Ort, Pointer, RunArguments } from './ort.js'
import type { Session, Values } from './sessions.js'
import { align, createTensor, ELEMENT, KV_ELEMENT, tensorBytes } from './tensor.js'

type Kind = 'score' | 'rank'
type Field = { readonly name: string; readonly type: number; readonly dims: readonly number[] }
type Packed = { readonly offsets: ReadonlyMap<string, number>; readonly bytes: number }

/**
 * Results that a run may write into the process's own memory: a copy behind it takes longer than so few packets
 * over the bus.
 */
const DIRECT_BYTES = 16_384

/** One captured graph: n history tokens, m candidates, and where its inputs lie in their memory. */
export type Shape = {
  readonly kind: Kind
  readonly n: number
  readonly m: number
  readonly packed: Packed
  readonly resultBytes: number
  /** The results lie where the process has them, not where runs do. */
  readonly isDirect: boolean
  /** What its runs share: values over fixed addresses. */
  readonly args: RunArguments
}

export type ShapesOptions = {
  readonly ort: Ort
  /** Where runs need their tensors. */
  readonly memory: TensorMemory
  readonly device: LaneDevice
  readonly sessions: Readonly<Record<Kind, Session>>
  readonly manifest: Manifest
  /** What the engine keeps K/V in. */
  readonly kvPrecision: KvPrecision
  /** Lengths of the shapes that are captured, ascending; a run is padded to the next. */
  readonly historyTokens: readonly number[]
  readonly candidates: readonly number[]
}

/**
 * The shapes of a lane over one fixed memory: K/V of the longest history, packed inputs, logits. A
 * captured graph keeps the addresses that it was captured with.
 */
export async function createShapes({
  ort,
  memory,
  device,
  sessions,
  manifest,
  kvPrecision,
  historyTokens,
  candidates,
}: ShapesOptions) {
  const { config } = manifest
  const { slots } = manifest.embedding
  const tasks = config.tasks.length
  const kvType = KV_ELEMENT[kvPrecision]
  const width = config.heads * config.dqk
  const rowBytes = width * KV_ELEMENT_BYTES[kvPrecision]
  const regions = 2 * config.layers
  const longest = Math.max(...historyTokens)
  const most = Math.max(...candidates)
  const pitch = align(longest * rowBytes)

  const fieldsOf: Readonly<Record<Kind, (n: number, m: number) => Field[]>> = {
    score: (n, m) => [
      { name: 'query_time', type: ELEMENT.int64, dims: [1] },
      { name: 'times', type: ELEMENT.int64, dims: [n] },
      { name: 'rows', type: ELEMENT.int32, dims: [m, slots] },
    ],
    rank: (n, m) => [
      { name: 'query_times', type: ELEMENT.int64, dims: [1] },
      { name: 'lengths', type: ELEMENT.int64, dims: [1] },
      { name: 'times', type: ELEMENT.int64, dims: [1, n] },
      { name: 'actions', type: ELEMENT.int32, dims: [1, n] },
      { name: 'rows', type: ELEMENT.int32, dims: [1, n, slots] },
      { name: 'candidate_rows', type: ELEMENT.int32, dims: [1, m, slots] },
    ],
  }
  const inputBytes = Object.values(fieldsOf).map((fields) => pack(fields(longest, most)).bytes)
  const releases: (() => void)[] = []
  const release = () => {
    for (const each of releases.splice(0).reverse()) each()
  }
  const allocateAll = async () => {
    const kvAt = await memory.allocate(regions * pitch)
    releases.push(() => memory.free(kvAt))
    const mirror = (bytes: number) => {
      const made = device.mirror(bytes)
      releases.push(() => device.release(made))
      return made
    }
    const inputs = mirror(Math.max(...inputBytes))
    const logits = mirror(most * tasks * Float32Array.BYTES_PER_ELEMENT)
    return { kvAt, inputs, logits }
  }
  const { kvAt, inputs, logits } = await allocateAll().catch((error) => {
    release()
    throw error
  })
  const options = ort.CreateRunOptions()
  releases.push(() => ort.ReleaseRunOptions(options))
  // A captured run must not wait for what it has not begun; who replays it waits.
  ort.AddRunConfigEntry(options, 'disable_synchronize_execution_providers', '1')
  const all: Shape[] = []

  const value = (at: Pointer, type: number, dims: readonly number[]): Pointer => {
    const made = createTensor(ort, memory.info, at, dims, type)
    releases.push(() => ort.ReleaseValue(made))
    return made
  }
  const kvValues = (n: number): Values =>
    Object.fromEntries(
      Array.from({ length: regions }, (_, r) => [
        `${r % 2 === 0 ? 'k' : 'v'}.${r >> 1}`,
        value(kvAt + BigInt(r * pitch), kvType, [n, width]),
      ]),
    )
  const addShape = (kind: Kind, n: number, m: number, kv: Values) => {
    const fields = fieldsOf[kind](n, m)
    const packed = pack(fields)
    const given = Object.fromEntries(
      fields.map(({ name, type, dims }) => [
        name,
        value(inputs.at + BigInt(packed.offsets.get(name) ?? 0), type, dims),
      ]),
    )
    const dims = kind === 'score' ? [m, tasks] : [1, m, tasks]
    const resultBytes = tensorBytes(dims, ELEMENT.float32)
    const isDirect = resultBytes <= DIRECT_BYTES
    const result = { logits: value(isDirect ? logits.host : logits.at, ELEMENT.float32, dims) }
    const args = sessions[kind].bind({ ...given, ...kv }, result, options)
    all.push({ kind, n, m, packed, resultBytes, isDirect, args })
  }
  for (const n of historyTokens) {
    const kv = kvValues(n)
    for (const m of candidates) {
      addShape('score', n, m, kv)
      addShape('rank', n, m, {})
    }
  }

  return {
    all,
    kvAt,
    inputs,
    logits,
    /** Bytes from one region of K/V to the next, and of a token's row in it. */
    pitch,
    rowBytes,
    /** K and V of every layer. */
    regions,
    longest,
    /** The smallest shape that holds n and m: lengths ascend, candidates first. */
    fit: (kind: Kind, n: number, m: number) =>
      all.find((shape) => shape.kind === kind && shape.n >= n && shape.m >= m),
    release,
  }
}

/** Values one behind the other. */
function pack(fields: readonly Field[]): Packed {
  const offsets = new Map<string, number>()
  let bytes = 0
  for (const { name, type, dims } of fields) {
    offsets.set(name, bytes)
    bytes = align(bytes + tensorBytes(dims, type))
  }
  return { offsets, bytes }
}
