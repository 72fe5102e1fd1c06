// The ops of a layer at the paper's ranking shape, as a library's kernels and as function bodies.
import { blockOf } from '../model/config.js'
import { type OpGraph, type OpInputs, openOp } from '../model/engine/capi/op-session.js'
import {
  attentionAttributes,
  hstuAttention,
  hstuCausalAttention,
} from '../model/export/functions.js'
import { gateAttributes, hstuGate } from '../model/export/gate.js'
import { hstuLinear } from '../model/export/linear.js'
import { PAPER_SHAPE, randomConfig } from '../model/export/random.js'
import { createRandom } from '../model/random.js'
import { tiledKv, withTiles } from '../test/kv-tiles.js'
import { isKv } from '../test/op-runs.js'

const CANDIDATES = 1024

export type OpCase = {
  readonly name: string
  /** Floating-point operations of its products that are of use: the causal half, not the square. */
  readonly flop: number
  readonly graph: OpGraph
  readonly inputs: OpInputs
  readonly outDims: readonly number[]
}

export function opCases(): OpCase[] {
  const config = randomConfig(PAPER_SHAPE)
  const shape = { config, block: blockOf(config), type: 'float32', batched: false } as const
  const { heads, dqk, dv, dModel, maxTokens: n, positions } = config
  const width = 2 * heads * (dqk + dv)
  const random = createRandom(11)
  const tensor = (...dims: number[]) => {
    const length = dims.reduce((product, dim) => product * dim, 1)
    return { data: Float32Array.from({ length }, () => 2 * random() - 1), dims }
  }
  const times = (length: number) => {
    const data = BigInt64Array.from({ length }, (_, i) => BigInt(1_700_000_000 + 3600 * i))
    return { data, dims: [length] }
  }
  const input = (name: string, { data, dims }: OpInputs[string]) => ({
    name,
    type: data instanceof Float32Array ? ('float32' as const) : ('int64' as const),
    dims,
  })
  const make = (
    name: string,
    flop: number,
    graph: Pick<OpGraph, 'function' | 'attributes'>,
    inputs: OpInputs,
    outDims: readonly number[],
    constants: readonly string[] = [],
  ): OpCase => {
    const declared = Object.entries(inputs).map(([key, value]) => {
      const { data } = value
      const isConstant = constants.includes(key) && data instanceof Float32Array
      return { ...input(key, value), ...(isConstant && { constant: data }) }
    })
    const given = Object.entries(inputs).filter(([key]) => !constants.includes(key))
    const whole = { ...graph, inputs: declared, outputDims: outDims }
    return { name, flop, graph: whole, inputs: Object.fromEntries(given), outDims }
  }

  const attributes = attentionAttributes(shape)
  const history = { k: tensor(n, heads * dqk), v: tensor(n, heads * dv) }
  const candidates = (m: number) =>
    make(
      `HstuAttention, m = ${m.toLocaleString('en')}`,
      2 * m * n * heads * (dqk + dv),
      { function: hstuAttention(shape), attributes },
      { uvqk: tensor(m, width), ...history, bias: tensor(n + 1) },
      [m, heads * dv],
    )
  const causal = (name: string, past: number, c: number) =>
    make(
      name,
      2 * (past * c + (c * (c + 1)) / 2) * heads * (dqk + dv),
      { function: hstuCausalAttention(shape), attributes },
      {
        uvqk: tensor(c, width),
        past_k: tensor(past, heads * dqk),
        past_v: tensor(past, heads * dv),
        times: times(past + c),
        new_times: { data: times(past + c).data.slice(past), dims: [c] },
        pos_w: tensor(positions),
        time_w: tensor(config.timeBuckets),
      },
      [c, heads * dv],
    )
  const linear = (form: Parameters<typeof hstuLinear>[0], columns: number) => {
    const body = hstuLinear(form)
    const rows = CANDIDATES
    return make(
      `${body.name}, ${rows.toLocaleString('en')} x ${dModel} x ${columns.toLocaleString('en')}`,
      2 * rows * dModel * columns,
      { function: body, attributes: undefined },
      {
        x: tensor(rows, dModel),
        weight: tensor(dModel, columns),
        ...(form.bias ? { bias: tensor(columns) } : {}),
        ...(form.residual ? { residual: tensor(rows, columns) } : {}),
      },
      [rows, columns],
      ['weight', 'bias'],
    )
  }
  const wide = heads * dv
  return [
    candidates(256),
    candidates(CANDIDATES),
    causal('HstuCausalAttention, the last 256 of 2,048 tokens', n - 256, 256),
    causal('HstuCausalAttention, 2 tokens appended', n - 2, 2),
    make(
      `HstuGate, ${CANDIDATES.toLocaleString('en')} rows`,
      0,
      { function: hstuGate(shape), attributes: gateAttributes(shape) },
      {
        uvqk: tensor(CANDIDATES, width),
        a: tensor(CANDIDATES, wide),
        gamma: tensor(wide),
        beta: tensor(wide),
      },
      [CANDIDATES, wide],
    ),
    linear({ silu: true }, width),
    linear({ bias: true, residual: true }, dModel),
  ]
}

/** A case ready to run on `threads` threads, a library's with K/V as tiles; `close` frees it. */
export async function openCase(
  folder: string,
  { graph, inputs, outDims }: OpCase,
  library: string | undefined,
  threads: number,
) {
  const hasTiles = library !== undefined && graph.inputs.some(({ name }) => isKv(name))
  const config = randomConfig(PAPER_SHAPE)
  const options = { library, threads, spin: threads > 1 }
  const session = await openOp(folder, hasTiles ? withTiles(graph, config) : graph, options)
  const given = hasTiles ? await tiledKv(inputs, config, library) : inputs
  const { run, release } = session.bind(given, outDims)
  return {
    run,
    async close() {
      release()
      await session.close()
    },
  }
}
