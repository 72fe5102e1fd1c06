// Random cases of the two attention ops, through the CPU's kernel and the function's body, with the
// float64 answer beside them.
import assert from 'node:assert/strict'
import { fromBf16, toBf16 } from '../model/bf16.js'
import { blockOf } from '../model/config.js'
import type { OpGraph, OpTensor } from '../model/engine/capi/op-session.js'
import {
  attentionAttributes,
  type FunctionShape,
  hstuAttention,
  hstuCausalAttention,
} from '../model/export/functions.js'
import { attentionOracle } from './attention-oracle.js'
import { type Scope, smallConfig } from './fixtures.js'
import { tiledKv, withTiles } from './kv-tiles.js'
import { openRuns, roundedKv, withBf16Kv } from './op-runs.js'

const POSITIONS = 20

export type Variant = {
  /** Of the kernels. */
  readonly library: string
  readonly heads: number
  readonly dqk: number
  readonly dv: number
  readonly alpha: number
  readonly rab: boolean
  readonly users?: number
  /** The kernel gets the history's K and V in bfloat16; body and oracle the same numbers. */
  readonly bf16Kv?: boolean
  /** … and as tiles. */
  readonly tiles?: boolean
}

function shapeOf({ heads, dqk, dv, alpha, rab, users }: Variant): FunctionShape {
  const size = { heads, dqk, dv, maxTokens: 100, positions: POSITIONS }
  const config = smallConfig({ ...size, block: { alpha, rab } })
  return { config, block: blockOf(config), type: 'float32', batched: users !== undefined }
}

type Random = () => number
const values = (random: Random, length: number) =>
  Float32Array.from({ length }, () => 2 * random() - 1)

/** (tokens, [users,] width): one user's rows of it. */
function rowsOf(data: Float32Array, tokens: number, users: number, user: number): Float32Array {
  const width = data.length / (tokens * users || 1)
  const row = (i: number) =>
    data.subarray((i * users + user) * width, (i * users + user + 1) * width)
  return Float32Array.from(
    { length: tokens * width },
    (_, at) => row(Math.floor(at / width))[at % width] ?? 0,
  )
}

/** K or V of a history. */
const kept = (random: Random, length: number, { bf16Kv }: Variant) => {
  const exact = values(random, length)
  return bf16Kv ? new Float32Array(fromBf16(toBf16(exact)).buffer) : exact
}

/** Both ways to run one op; the function's body where the lengths allow it. */
async function openBoth(scope: Scope, graph: OpGraph, variant: Variant) {
  const { library, bf16Kv, tiles } = variant
  const narrow = bf16Kv ? withBf16Kv(graph) : graph
  const opened = await openRuns(scope, tiles ? withTiles(graph, variant) : narrow, { library })
  const body = await openRuns(scope, graph, {})
  assert.ok(opened.operators.includes(graph.function.name), 'the kernel is not in use')
  assert.ok(!body.operators.includes(graph.function.name), 'the body is not in use')
  const run: typeof opened.run = async (given, outDims) => {
    if (tiles) return opened.run(await tiledKv(given, variant, library), outDims)
    return opened.run(bf16Kv ? roundedKv(given) : given, outDims)
  }
  return { kernel: { ...opened, run }, body }
}

export type Expected = { readonly out: Float64Array; readonly bound: Float64Array }

export async function openCandidates(scope: Scope, variant: Variant) {
  const shape = shapeOf(variant)
  const { heads, dqk, dv } = variant
  const users = variant.users === undefined ? [] : ['users']
  const width = 2 * heads * (dqk + dv)
  const dims = (rows: string, columns: number | string) => [rows, ...users, columns]
  const both = await openBoth(
    scope,
    {
      function: hstuAttention(shape),
      attributes: attentionAttributes(shape),
      inputs: [
        { name: 'uvqk', type: 'float32', dims: dims('m', width) },
        { name: 'k', type: 'float32', dims: dims('n', heads * dqk) },
        { name: 'v', type: 'float32', dims: dims('n', heads * dv) },
        ...(variant.rab
          ? [{ name: 'bias', type: 'float32' as const, dims: [...users, 'n_plus_1'] }]
          : []),
      ],
      outputDims: dims('m', heads * dv),
    },
    variant,
  )
  const make = (m: number, n: number, random: Random) => {
    const count = variant.users ?? 1
    const each = variant.users === undefined ? [] : [count]
    const uvqk = values(random, m * count * width)
    const k = kept(random, n * count * heads * dqk, variant)
    const v = kept(random, n * count * heads * dv, variant)
    const bias = values(random, count * (n + 1))
    const inputs: { [name: string]: OpTensor } = {
      uvqk: { data: uvqk, dims: [m, ...each, width] },
      k: { data: k, dims: [n, ...each, heads * dqk] },
      v: { data: v, dims: [n, ...each, heads * dv] },
      ...(variant.rab ? { bias: { data: bias, dims: [...each, n + 1] } } : {}),
    }
    const expected = Array.from({ length: count }, (_, user) =>
      attentionOracle(
        {
          uvqk: rowsOf(uvqk, m, count, user),
          queries: m,
          k: rowsOf(k, n, count, user),
          v: rowsOf(v, n, count, user),
          keys: n,
          bias: (_i, j) => (variant.rab ? (bias[user * (n + 1) + j] ?? Number.NaN) : 0),
          causal: false,
        },
        shape,
      ),
    )
    return { inputs, outDims: [m, ...each, heads * dv], expected: interleave(expected, m) }
  }
  return { ...both, make }
}

/** Per user (tokens, width) -> (tokens, users, width). */
function interleave(users: readonly Expected[], tokens: number): Expected {
  const join = (pick: (x: Expected) => Float64Array) => {
    const width = (users[0] ? pick(users[0]).length : 0) / (tokens || 1)
    const parts = Array.from({ length: tokens * users.length }, (_, at) => {
      const i = Math.floor(at / users.length)
      const user = users[at % users.length]
      return user === undefined ? [] : Array.from(pick(user).subarray(i * width, (i + 1) * width))
    })
    return Float64Array.from(parts.flat())
  }
  return { out: join(({ out }) => out), bound: join(({ bound }) => bound) }
}

/** Tables and timestamps that reach every kind of bucket, ties and steps back among them. */
function timeline(n: number, random: Random): BigInt64Array {
  let time = 1_700_000_000
  return BigInt64Array.from({ length: n }, () => {
    time += random() < 0.3 ? 0 : Math.floor(10 ** (random() * 6)) - 3
    return BigInt(time)
  })
}

const bucketOf = (seconds: number) =>
  Math.min(127, Math.floor(Math.log(Math.max(seconds, 1)) / 0.301))

export async function openCausal(scope: Scope, variant: Variant) {
  const shape = shapeOf(variant)
  const { heads, dqk, dv } = variant
  const isBatched = variant.users !== undefined
  const users = isBatched ? ['users'] : []
  const width = 2 * heads * (dqk + dv)
  const both = await openBoth(
    scope,
    {
      function: hstuCausalAttention(shape),
      attributes: attentionAttributes(shape),
      inputs: [
        { name: 'uvqk', type: 'float32', dims: ['c', ...users, width] },
        ...(isBatched
          ? []
          : ([
              { name: 'past_k', type: 'float32', dims: ['p', heads * dqk] },
              { name: 'past_v', type: 'float32', dims: ['p', heads * dv] },
            ] as const)),
        { name: 'times', type: 'int64', dims: [...users, 'p_plus_c'] },
        { name: 'new_times', type: 'int64', dims: [...users, 'c'] },
        ...(variant.rab
          ? ([
              { name: 'pos_w', type: 'float32', dims: [POSITIONS] },
              { name: 'time_w', type: 'float32', dims: [128] },
            ] as const)
          : []),
      ],
      outputDims: ['c', ...users, heads * dv],
    },
    variant,
  )
  const make = (c: number, p: number, random: Random) => {
    const count = variant.users ?? 1
    const each = isBatched ? [count] : []
    const n = p + c
    const uvqk = values(random, c * count * width)
    const k = kept(random, p * heads * dqk, variant)
    const v = kept(random, p * heads * dv, variant)
    const times = Array.from({ length: count }, () => timeline(n, random))
    const newTimes = times.map((all) => all.slice(p))
    const all = (lists: readonly BigInt64Array[]) =>
      BigInt64Array.from(lists.flatMap((list) => Array.from(list)))
    const positions = values(random, POSITIONS)
    const timeTable = values(random, 128)
    const inputs: { [name: string]: OpTensor } = {
      uvqk: { data: uvqk, dims: [c, ...each, width] },
      ...(isBatched
        ? {}
        : {
            past_k: { data: k, dims: [p, heads * dqk] },
            past_v: { data: v, dims: [p, heads * dv] },
          }),
      times: { data: all(times), dims: [...each, n] },
      new_times: { data: all(newTimes), dims: [...each, c] },
      ...(variant.rab
        ? {
            pos_w: { data: positions, dims: [POSITIONS] },
            time_w: { data: timeTable, dims: [128] },
          }
        : {}),
    }
    const expected = times.map((seconds, user) =>
      attentionOracle(
        {
          uvqk: rowsOf(uvqk, c, count, user),
          queries: c,
          k,
          v,
          keys: p,
          bias: (i, j) => {
            if (!variant.rab) return 0
            const bucket = bucketOf(Number((seconds[p + i] ?? 0n) - (seconds[j] ?? 0n)))
            const distance = Math.min(p + i - j, POSITIONS - 1)
            return (positions[distance] ?? Number.NaN) + (timeTable[bucket] ?? Number.NaN)
          },
          causal: true,
        },
        shape,
      ),
    )
    return { inputs, outDims: [c, ...each, heads * dv], expected: interleave(expected, c) }
  }
  return { ...both, make }
}
