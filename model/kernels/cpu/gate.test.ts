import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { smallConfig } from '../../../test/fixtures.js'
import { builtKernels } from '../../../test/kernel-library.js'
import { openRuns } from '../../../test/op-runs.js'
import { blockOf } from '../../config.js'
import type { FunctionShape } from '../../export/functions.js'
import { gateAttributes, hstuGate } from '../../export/gate.js'
import { createRandom } from '../../random.js'

const { folder, skip } = builtKernels()
const LIBRARY = `${folder}/libperegrine_kernels_cpu.so`
/** Both sides are float32. */
const TOLERANCE = 1e-5

type Gate = {
  readonly u: Float32Array
  readonly a: Float32Array
  readonly gamma: Float32Array | undefined
  readonly beta: Float32Array | undefined
}

/** One row by the definition, in float64. */
function gateOracle({ u, a, gamma, beta }: Gate, { config, block }: FunctionShape): number[] {
  const width = a.length
  const mean = a.reduce((sum, x) => sum + x, 0) / width
  const variance = a.reduce((sum, x) => sum + (x - mean) ** 2, 0) / width
  const first = Array.from(u, (x) => (block.silu === 'u' ? x / (1 + Math.exp(-x)) : x))
  const gated = first.map((x, c) => {
    const norm = ((a[c] ?? 0) - mean) / Math.sqrt(variance + config.layerNormEps)
    return x * (norm * (gamma?.[c] ?? 1) + (beta?.[c] ?? 0))
  })
  return block.combine === 'gate' ? gated : [...first, ...a, ...gated]
}

describe('HstuGate, AVX-512 kernel', { skip }, () => {
  const random = createRandom(5)
  const values = (length: number, size = 1) =>
    Float32Array.from({ length }, () => size * (2 * random() - 1))

  for (const silu of ['uvqk', 'u'] as const) {
    for (const combine of ['gate', 'concat'] as const) {
      for (const normAttnAffine of [true, false]) {
        for (const batched of [false, true]) {
          const name = `SiLU on ${silu}, ${combine}, affine ${normAttnAffine}, batched ${batched}`
          test(name, async (t) => {
            for (const [heads, dv] of [
              [2, 4],
              [1, 1],
              [3, 17],
              [8, 64],
            ] as const) {
              const block = { silu, combine, normAttnAffine }
              const config = smallConfig({ heads, dv, dqk: 5, block })
              const shape = { config, block: blockOf(config), type: 'float32', batched } as const
              const width = heads * dv
              const wide = 2 * width + 2 * heads * 5
              const outWidth = combine === 'gate' ? width : 3 * width
              const users = batched ? ['users'] : []
              const row = (columns: number) => ['tokens', ...users, columns]
              const graph = {
                function: hstuGate(shape),
                attributes: gateAttributes(shape),
                inputs: [
                  { name: 'uvqk', type: 'float32' as const, dims: row(wide) },
                  { name: 'a', type: 'float32' as const, dims: row(width) },
                  ...(normAttnAffine
                    ? [
                        { name: 'gamma', type: 'float32' as const, dims: [width] },
                        { name: 'beta', type: 'float32' as const, dims: [width] },
                      ]
                    : []),
                ],
                outputDims: row(outWidth),
              }
              const kernel = await openRuns(t, graph, { library: LIBRARY })
              const body = await openRuns(t, graph, {})
              assert.ok(
                kernel.operators.includes('HstuGate') && !body.operators.includes('HstuGate'),
              )
              for (const tokens of [0, 1, 16, 17, 33]) {
                const each = batched ? [2] : []
                const rows = tokens * (batched ? 2 : 1)
                // SiLU's tails, and attention as small as it is for short histories.
                const uvqk = values(rows * wide, 30)
                const a = values(rows * width, 0.01)
                const [gamma, beta] = normAttnAffine ? [values(width), values(width)] : []
                const inputs = {
                  uvqk: { data: uvqk, dims: [tokens, ...each, wide] },
                  a: { data: a, dims: [tokens, ...each, width] },
                  ...(gamma && beta
                    ? { gamma: { data: gamma, dims: [width] }, beta: { data: beta, dims: [width] } }
                    : {}),
                }
                const expected = Array.from({ length: rows }, (_, i) =>
                  gateOracle(
                    {
                      u: uvqk.subarray(i * wide, i * wide + width),
                      a: a.subarray(i * width, (i + 1) * width),
                      gamma,
                      beta,
                    },
                    shape,
                  ),
                ).flat()
                for (const [who, op] of Object.entries({ kernel, body })) {
                  if (who === 'body' && tokens === 0) continue
                  const got = await op.run(inputs, [tokens, ...each, outWidth])
                  assert.equal(got.length, expected.length)
                  expected.forEach((exact, i) => {
                    const allowed = TOLERANCE * Math.max(1, Math.abs(exact))
                    const difference = Math.abs((got[i] ?? Number.NaN) - exact)
                    assert.ok(
                      difference <= allowed,
                      `${who}, ${tokens} tokens, width ${width}, value ${i}: ${got[i]} for ${exact}`,
                    )
                  })
                }
              }
            }
          })
        }
      }
    }
  }
})
