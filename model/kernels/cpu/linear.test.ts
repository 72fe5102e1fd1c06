import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { Scope } from '../../../test/fixtures.js'
import { builtKernels } from '../../../test/kernel-library.js'
import { openRuns } from '../../../test/op-runs.js'
import type { OpTensor } from '../../engine/capi/op-session.js'
import { hstuLinear, type LinearForm } from '../../export/linear.js'
import { createRandom } from '../../random.js'

const { folder, skip } = builtKernels()
const LIBRARY = `${folder}/libperegrine_kernels_cpu.so`
/** Of a bf16 number, relative: half a unit in the last place. */
const ROUNDING = 2 ** -8
const FLOAT32_SLACK = 1e-5

const FORMS: readonly LinearForm[] = [
  {},
  { bias: true },
  { silu: true },
  { bias: true, silu: true },
  { residual: true },
  { bias: true, residual: true },
]

type Sizes = { readonly depth: number; readonly columns: number }
type Case = {
  readonly inputs: { readonly [name: string]: OpTensor }
  readonly outDims: readonly number[]
  readonly expected: readonly { readonly exact: number; readonly bound: number }[]
}

/** A layer as a kernel and as its body; `isConstant` weights are known when the session is made. */
async function openLinear(
  scope: Scope,
  form: LinearForm,
  { depth, columns }: Sizes,
  isConstant: boolean,
) {
  const random = createRandom(depth * 1000 + columns)
  const values = (length: number, size = 1) =>
    Float32Array.from({ length }, () => size * (2 * random() - 1))
  const weight = values(depth * columns, depth ** -0.5)
  const bias = values(columns)
  const body = hstuLinear(form)
  const graph = {
    function: body,
    attributes: undefined,
    inputs: [
      { name: 'x', type: 'float32' as const, dims: ['rows', depth] },
      {
        name: 'weight',
        type: 'float32' as const,
        dims: [depth, columns],
        ...(isConstant && { constant: weight }),
      },
      ...(form.bias ? [{ name: 'bias', type: 'float32' as const, dims: [columns] }] : []),
      ...(form.residual
        ? [{ name: 'residual', type: 'float32' as const, dims: ['rows', columns] }]
        : []),
    ],
    outputDims: ['rows', columns],
  }
  const kernel = await openRuns(scope, graph, { library: LIBRARY })
  const plain = await openRuns(scope, graph, {})
  assert.ok(kernel.operators.includes(body.name) && !plain.operators.includes(body.name))
  const make = (rows: number): Case => {
    const x = values(rows * depth, 3)
    const residual = values(rows * columns)
    const expected = Array.from({ length: rows * columns }, (_, at) => {
      const [i, c] = [Math.floor(at / columns), at % columns]
      let sum = form.bias ? (bias[c] ?? Number.NaN) : 0
      let size = 0
      for (let d = 0; d < depth; d++) {
        const term = (x[i * depth + d] ?? Number.NaN) * (weight[d * columns + c] ?? Number.NaN)
        sum += term
        size += Math.abs(term)
      }
      const y = form.silu ? sum / (1 + Math.exp(-sum)) : sum
      // SiLU's slope is below 1.1.
      const bound = 1.1 * 2 * ROUNDING * size + FLOAT32_SLACK
      return { exact: y + (form.residual ? (residual[at] ?? Number.NaN) : 0), bound }
    })
    const inputs = {
      x: { data: x, dims: [rows, depth] },
      ...(isConstant ? {} : { weight: { data: weight, dims: [depth, columns] } }),
      ...(form.bias ? { bias: { data: bias, dims: [columns] } } : {}),
      ...(form.residual ? { residual: { data: residual, dims: [rows, columns] } } : {}),
    }
    return { inputs, outDims: [rows, columns], expected }
  }
  return { kernel, plain, make }
}

type Opened = Awaited<ReturnType<typeof openLinear>>

async function compare({ kernel, plain, make }: Opened, rows: number, what: string) {
  const { inputs, outDims, expected } = make(rows)
  const check = (got: Float32Array, who: string, slack?: number) => {
    assert.equal(got.length, expected.length)
    expected.forEach(({ exact, bound }, i) => {
      const difference = Math.abs((got[i] ?? Number.NaN) - exact)
      const message = `${who}, ${what}, ${rows} rows, value ${i}: ${got[i]} for ${exact}`
      assert.ok(difference <= (slack ?? bound), message)
    })
  }
  check(await kernel.run(inputs, outDims), 'kernel')
  if (rows > 0) check(await plain.run(inputs, outDims), 'body', FLOAT32_SLACK)
}

describe('HstuLinear, AMX kernel', { skip }, () => {
  for (const form of FORMS) {
    test(`${hstuLinear(form).name}: every shape of tiles`, async (t) => {
      const sizes = [1, 15, 16, 17, 31, 32, 33, 48, 65]
      for (const [i, depth] of sizes.entries()) {
        // Every size meets every other over the forms' tests; each test takes a ninth of the square.
        const columns = sizes[(i + FORMS.indexOf(form)) % sizes.length] ?? 1
        const opened = await openLinear(t, form, { depth, columns }, i % 3 !== 0)
        for (const rows of [0, 1, 16, 17, 32, 33])
          await compare(opened, rows, `${depth} x ${columns}`)
      }
    })
  }

  test('more rows and columns than one piece of work takes', async (t) => {
    for (const form of [{ silu: true }, { bias: true, residual: true }]) {
      const opened = await openLinear(t, form, { depth: 40, columns: 300 }, true)
      for (const rows of [127, 129, 290]) await compare(opened, rows, '40 x 300')
    }
  })

  test('SiLU of what is large either way is x or 0', async (t) => {
    const { kernel } = await openLinear(t, { silu: true }, { depth: 1, columns: 1 }, false)
    const data = Float32Array.of(-1e30, -1000, -88, -87, 0, 87, 88, 1000, 1e30)
    const x = { data, dims: [data.length, 1] }
    const weight = { data: Float32Array.of(1), dims: [1, 1] }
    const got = await kernel.run({ x, weight }, [data.length, 1])
    for (const [i, y] of got.entries()) {
      const exact = Math.max(0, data[i] ?? 0)
      assert.ok(Math.abs(y - exact) <= ROUNDING * exact + 1e-7, `${data[i]}: ${y}`)
    }
  })

  test('eight runs at once give what each gives alone, bit for bit', async (t) => {
    const { kernel, make } = await openLinear(
      t,
      { bias: true, silu: true },
      { depth: 64, columns: 96 },
      true,
    )
    const cases = Array.from({ length: 8 }, (_, i) => make(1 + 37 * i))
    const alone = []
    for (const { inputs, outDims } of cases) alone.push(await kernel.run(inputs, outDims))
    for (let round = 0; round < 5; round++) {
      const runs = cases.map(({ inputs, outDims }) => kernel.run(inputs, outDims))
      assert.deepEqual(await Promise.all(runs), alone)
    }
  })

  test('a row does not depend on the rows beside it', async (t) => {
    const { kernel, make } = await openLinear(t, {}, { depth: 70, columns: 40 }, true)
    const { inputs, outDims } = make(50)
    const whole = await kernel.run(inputs, outDims)
    const { x } = inputs
    for (let i = 0; i < 50; i += 7) {
      const row = { data: x?.data.slice(i * 70, (i + 1) * 70) ?? new Float32Array(), dims: [1, 70] }
      assert.deepEqual(await kernel.run({ x: row }, [1, 40]), whole.slice(i * 40, (i + 1) * 40))
    }
  })
})
