import type { Manifest } from '../../manifest.js'
import { KV_ELEMENT_BYTES } from '../kv-shape.js'
import type { LaneShape } from './lane-worker.js'
import type { TensorMemory } from './memory.js'
import type { Ort, Pointer } from './ort.js'
import type { Session, Values } from './sessions.js'
import { align, createTensor, ELEMENT, KV_ELEMENT, tensorBytes } from './tensor.js'

type Kind = 'score' | 'rank'
type Field = { readonly name: string; readonly type: number; readonly dims: readonly number[] }
type Packed = { readonly offsets: ReadonlyMap<string, number>; readonly bytes: number }

/** One captured graph: n history tokens, m candidates, and where its inputs lie in their memory. */
export type Shape = {
  readonly id: number
  readonly kind: Kind
  readonly n: number
  readonly m: number
  readonly packed: Packed
}

export type ShapesOptions = {
  readonly ort: Ort
  readonly memory: TensorMemory
  readonly sessions: Readonly<Record<Kind, Session>>
  readonly manifest: Manifest
  /** Lengths of the shapes that are captured, ascending; a run is padded to the next. */
  readonly historyTokens: readonly number[]
  readonly candidates: readonly number[]
}

/**
 * The shapes of a lane over one fixed memory: K/V of the longest history, packed inputs, logits. A
 * captured graph keeps the addresses that it was captured with. `add` gets each shape's arguments.
 */
export async function createShapes(
  { ort, memory, sessions, manifest, historyTokens, candidates }: ShapesOptions,
  add: (shape: number, args: LaneShape) => void,
) {
  const { config, precision } = manifest
  const { slots } = manifest.embedding
  const tasks = config.tasks.length
  const kvType = KV_ELEMENT[precision]
  const width = config.heads * config.dqk
  const rowBytes = width * KV_ELEMENT_BYTES[precision]
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
  const largest = Object.values(fieldsOf).map((fields) => pack(fields(longest, most)).bytes)
  const values: Pointer[] = []
  const runOptions: Pointer[] = []
  const addresses: Pointer[] = []
  const all: Shape[] = []
  const release = () => {
    for (const each of values) ort.ReleaseValue(each)
    for (const each of runOptions) ort.ReleaseRunOptions(each)
    for (const each of addresses) memory.free(each)
  }
  const allocate = async (bytes: number): Promise<Pointer> => {
    const address = await memory.allocate(bytes)
    addresses.push(address)
    return address
  }
  const allocateAll = async () => ({
    kvAt: await allocate(regions * pitch),
    inputsAt: await allocate(Math.max(...largest)),
    logitsAt: await allocate(most * tasks * Float32Array.BYTES_PER_ELEMENT),
  })
  const { kvAt, inputsAt, logitsAt } = await allocateAll().catch((error) => {
    release()
    throw error
  })

  const value = (at: Pointer, type: number, dims: readonly number[]): Pointer => {
    const made = createTensor(ort, memory.info, at, dims, type)
    values.push(made)
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
    const id = all.length
    const fields = fieldsOf[kind](n, m)
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
    const dims = kind === 'score' ? [m, tasks] : [1, m, tasks]
    const logits = value(logitsAt, ELEMENT.float32, dims)
    add(id, {
      ...sessions[kind].bind({ ...inputs, ...kv }, { logits }, options),
      inputsAt,
      logitsAt,
    })
    all.push({ id, kind, n, m, packed })
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
