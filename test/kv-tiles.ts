// The attention ops over tiles, as the engine keeps K and V for the CPU's kernels, in place of rows.
import koffi from 'koffi'
import { toBf16 } from '../model/bf16.js'
import { openKvTiles, TILE_TOKENS } from '../model/engine/capi/kv-tiles.js'
import type { OpGraph, OpInputs, OpTensor } from '../model/engine/capi/op-session.js'
import { isKv } from './op-runs.js'

type Heads = { readonly heads: number; readonly dqk: number; readonly dv: number }

/** Behind a history's tokens lies another's, or nothing that was ever written. */
const NAN = 0x7fc1
const ALIGN_BYTES = 64

/** A graph that takes K and V as tiles, and the number of tokens by `times`. */
export function withTiles(graph: OpGraph, { heads, dqk, dv }: Heads): OpGraph {
  const inputs = graph.inputs.map((input) => {
    if (!isKv(input.name)) return input
    const width = input.name.endsWith('k') ? dqk : dv
    return { name: input.name, type: 'uint16' as const, dims: [heads, 'capacity', width] }
  })
  const hasTimes = inputs.some(({ name }) => name === 'times')
  const times = { name: 'times', type: 'int64', dims: ['n'] } as const
  return { ...graph, inputs: hasTimes ? inputs : [...inputs, times] }
}

/** What such a graph is given: of a causal op's, tiles hold the new tokens' K and V, too. */
export async function tiledKv(
  inputs: OpInputs,
  { heads, dqk, dv }: Heads,
  library: string,
): Promise<OpInputs> {
  const tiles = openKvTiles(library)
  const { uvqk } = inputs
  const isCausal = inputs.past_k !== undefined
  const given: { [name: string]: OpTensor } = { ...inputs }
  for (const [name, { data }] of Object.entries(inputs)) {
    if (!isKv(name) || !(data instanceof Float32Array)) continue
    const isKey = name.endsWith('k')
    const width = isKey ? dqk : dv
    const first = isKey ? 2 * heads * dv + heads * dqk : heads * dv
    const own = isCausal && uvqk !== undefined ? columns(uvqk, first, heads * width) : []
    const rows = Float32Array.from([...data, ...own])
    const tokens = rows.length / (heads * width)
    const capacity = (Math.ceil(tokens / TILE_TOKENS) + 1) * TILE_TOKENS
    const memory = aligned(heads * capacity * width)
    memory.fill(NAN)
    const address = koffi.address(memory)
    await tiles.write({ address, isKey, heads, capacity, width }, toBf16(rows), 0)
    given[name] = { data: memory, dims: [heads, capacity, width] }
    if (!isCausal) given.times = { data: new BigInt64Array(tokens), dims: [tokens] }
  }
  return given
}

/** Columns [first, first + count) of every row. */
function columns({ data, dims }: OpTensor, first: number, count: number): number[] {
  const width = dims.at(-1) ?? 0
  const rows = Array.from({ length: data.length / (width || 1) }, (_, i) =>
    data.subarray(i * width + first, i * width + first + count),
  )
  return rows.flatMap((row) => Array.from(row, Number))
}

/** As the engine's memory is: a tile's rows are lines of the cache. */
function aligned(length: number): Uint16Array {
  const buffer = new ArrayBuffer(2 * length + ALIGN_BYTES)
  const over = Number(koffi.address(new Uint8Array(buffer)) % BigInt(ALIGN_BYTES))
  return new Uint16Array(buffer, (ALIGN_BYTES - over) % ALIGN_BYTES, length)
}
