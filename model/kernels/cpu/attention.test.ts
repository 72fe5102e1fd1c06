import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { attentionOracle } from '../../../test/attention-oracle.js'
import { type Scope, smallConfig } from '../../../test/fixtures.js'
import { builtKernels } from '../../../test/kernel-library.js'
import { openRuns } from '../../../test/op-runs.js'
import { blockOf } from '../../config.js'
import type { OpGraph, OpTensor } from '../../engine/capi/op-session.js'
import {
  attentionAttributes,
  type FunctionShape,
  hstuAttention,
  hstuCausalAttention,
} from '../../export/functions.js'
import { createRandom } from '../../random.js'

const { folder, skip } = builtKernels()
const LIBRARY = `${folder}/libperegrine_kernels_cpu.so`
/** The function's own arithmetic is float32. */
const FLOAT32_SLACK = 2e-5
const POSITIONS = 20

type Variant = {
  readonly heads: number
  readonly dqk: number
  readonly dv: number
  readonly alpha: number
  readonly rab: boolean
  readonly users?: number
}
const PLAIN = { heads: 2, dqk: 64, dv: 64, alpha: 1, rab: true }

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

/** Both ways to run one op; the function's body where the lengths allow it. */
async function openBoth(scope: Scope, graph: OpGraph) {
  const kernel = await openRuns(scope, graph, { library: LIBRARY })
  const body = await openRuns(scope, graph, {})
  assert.ok(kernel.operators.includes(graph.function.name), 'the kernel is not in use')
  assert.ok(!body.operators.includes(graph.function.name), 'the body is not in use')
  return { kernel, body }
}

type Expected = { readonly out: Float64Array; readonly bound: Float64Array }

/** Every value within its own bound. */
function assertClose(got: Float32Array, { out, bound }: Expected, slack: number, what: string) {
  assert.equal(got.length, out.length, what)
  out.forEach((exact, i) => {
    const allowed = slack === 0 ? (bound[i] ?? 0) + 1e-6 : slack
    const difference = Math.abs((got[i] ?? Number.NaN) - exact)
    assert.ok(difference <= allowed, `${what}, value ${i}: ${got[i]} for ${exact} ± ${allowed}`)
  })
}

async function openCandidates(scope: Scope, variant: Variant) {
  const shape = shapeOf(variant)
  const { heads, dqk, dv } = variant
  const users = variant.users === undefined ? [] : ['users']
  const width = 2 * heads * (dqk + dv)
  const dims = (rows: string, columns: number | string) => [rows, ...users, columns]
  const both = await openBoth(scope, {
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
  })
  const make = (m: number, n: number, random: Random) => {
    const count = variant.users ?? 1
    const each = variant.users === undefined ? [] : [count]
    const uvqk = values(random, m * count * width)
    const k = values(random, n * count * heads * dqk)
    const v = values(random, n * count * heads * dv)
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

async function openCausal(scope: Scope, variant: Variant) {
  const shape = shapeOf(variant)
  const { heads, dqk, dv } = variant
  const isBatched = variant.users !== undefined
  const users = isBatched ? ['users'] : []
  const width = 2 * heads * (dqk + dv)
  const both = await openBoth(scope, {
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
  })
  const make = (c: number, p: number, random: Random) => {
    const count = variant.users ?? 1
    const each = isBatched ? [count] : []
    const n = p + c
    const uvqk = values(random, c * count * width)
    const k = values(random, p * heads * dqk)
    const v = values(random, p * heads * dv)
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

const OPS = { HstuAttention: openCandidates, HstuCausalAttention: openCausal }
/** Around the sizes of tiles (16), blocks (32) and chunks of keys (512). */
const QUERIES = [1, 2, 15, 16, 17, 31, 32, 33, 65]
const KEYS = [0, 1, 15, 16, 17, 31, 33, 64, 511, 513]

for (const [op, open] of Object.entries(OPS)) {
  describe(`${op}, AMX kernel`, { skip }, () => {
    async function compare(
      opened: Awaited<ReturnType<typeof open>>,
      m: number,
      n: number,
      seed: number,
    ) {
      const { inputs, outDims, expected } = opened.make(m, n, createRandom(seed))
      const what = `seed ${seed}, ${m} queries, ${n} keys`
      assertClose(await opened.kernel.run(inputs, outDims), expected, 0, `kernel, ${what}`)
      // ONNX Runtime's matrix products end the process where one side is empty.
      if (m === 0 || n === 0) return
      assertClose(await opened.body.run(inputs, outDims), expected, FLOAT32_SLACK, `body, ${what}`)
    }

    test('every shape of tiles', async (t) => {
      const opened = await open(t, { ...PLAIN, heads: 1, dqk: 32, dv: 16 })
      for (const m of QUERIES) for (const n of KEYS) await compare(opened, m, n, m * 1000 + n)
    })

    test('every variant: bias or none, alpha, several users', async (t) => {
      for (const rab of [true, false]) {
        for (const alpha of [1, 0.125]) {
          for (const users of [undefined, 1, 3]) {
            const opened = await open(t, {
              ...PLAIN,
              dqk: 6,
              dv: 4,
              rab,
              alpha,
              ...(users && { users }),
            })
            const isCausalBatch = op === 'HstuCausalAttention' && users !== undefined
            for (const [m, n] of [
              [5, 40],
              [37, 3],
              [70, 70],
            ] as const) {
              await compare(opened, m, isCausalBatch ? 0 : n, m + n)
            }
          }
        }
      }
    })

    test('heads of any width', async (t) => {
      for (const [dqk, dv] of [
        [1, 1],
        [33, 17],
        [17, 33],
        [64, 128],
        [128, 64],
        [256, 256],
        [1024, 8],
        [8, 1024],
      ] as const) {
        const opened = await open(t, { ...PLAIN, heads: 3, dqk, dv, alpha: dqk ** -0.5 })
        for (const [m, n] of [
          [19, 45],
          [33, 70],
        ] as const)
          await compare(opened, m, n, dqk + dv)
      }
    })

    test('random lengths', async (t) => {
      const opened = await open(t, { ...PLAIN, heads: 1, dqk: 8, dv: 8 })
      const random = createRandom(17)
      for (let i = 0; i < 40; i++) {
        await compare(opened, Math.floor(100 * random()), Math.floor(1200 * random() ** 2), 500 + i)
      }
    })

    test('eight runs at once give what each gives alone, bit for bit', async (t) => {
      const opened = await open(t, { ...PLAIN, dqk: 64, dv: 32 })
      const random = createRandom(23)
      const cases = Array.from({ length: 8 }, () =>
        opened.make(1 + Math.floor(90 * random()), Math.floor(700 * random()), random),
      )
      const alone = []
      for (const { inputs, outDims } of cases) alone.push(await opened.kernel.run(inputs, outDims))
      for (let round = 0; round < 5; round++) {
        const together = await Promise.all(
          cases.map(({ inputs, outDims }) => opened.kernel.run(inputs, outDims)),
        )
        assert.deepEqual(together, alone)
      }
    })

    test('inputs that do not fit are refused with what was expected', async (t) => {
      const opened = await open(t, PLAIN)
      const { inputs, outDims } = opened.make(3, 5, createRandom(1))
      const wrong = { data: new Float32Array(3 * 7), dims: [3, 7] }
      const refused = {
        code: 'MODEL_CONTRACT',
        message: new RegExp(`${op} expects|Got invalid dimensions`),
      }
      await assert.rejects(opened.kernel.run({ ...inputs, uvqk: wrong }, outDims), refused)
    })
  })
}
