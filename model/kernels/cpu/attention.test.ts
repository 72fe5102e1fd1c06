import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { type Expected, openCandidates, openCausal } from '../../../test/attention-cases.js'
import { builtKernels } from '../../../test/kernel-library.js'
import { createRandom } from '../../random.js'

const { folder, skip } = builtKernels()
/** The function's own arithmetic is float32. */
const FLOAT32_SLACK = 2e-5
const PLAIN = {
  ...{ library: `${folder}/libperegrine_kernels_cpu.so`, heads: 2, dqk: 64, dv: 64 },
  ...{ alpha: 1, rab: true },
}

/** Every value within its own bound. */
function assertClose(got: Float32Array, { out, bound }: Expected, slack: number, what: string) {
  assert.equal(got.length, out.length, what)
  out.forEach((exact, i) => {
    const allowed = slack === 0 ? (bound[i] ?? 0) + 1e-6 : slack
    const difference = Math.abs((got[i] ?? Number.NaN) - exact)
    assert.ok(difference <= allowed, `${what}, value ${i}: ${got[i]} for ${exact} ± ${allowed}`)
  })
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

    test('K and V in bf16 give what float32 gives that is rounded in the run, bit for bit', async (t) => {
      for (const [variant, keys] of [
        [{ ...PLAIN, dqk: 40, dv: 24, alpha: 0.125 }, [0, 1, 31, 32, 33, 63, 65, 511, 513]],
        [{ ...PLAIN, heads: 3, dqk: 1, dv: 33, rab: false }, [0, 1, 31, 33]],
        [{ ...PLAIN, dqk: 17, dv: 17, users: 3 }, op === 'HstuAttention' ? [1, 33] : [0]],
      ] as const) {
        const rounding = await open(t, variant)
        const kept = await open(t, { ...variant, bf16Kv: true })
        for (const m of [1, 16, 33, 70]) {
          for (const n of keys) {
            await compare(kept, m, n, m * 1000 + n)
            // Of one seed: the same numbers, before and after they are rounded.
            const [a, b] = [rounding, kept].map(({ make }) => make(m, n, createRandom(m + n)))
            assert.deepEqual(
              await kept.kernel.run(b?.inputs ?? {}, b?.outDims ?? []),
              await rounding.kernel.run(a?.inputs ?? {}, a?.outDims ?? []),
              `${m} queries, ${n} keys`,
            )
          }
        }
      }
    })

    test('K and V as tiles give what rows give, bit for bit, whatever lies behind their last token', async (t) => {
      for (const variant of [
        { ...PLAIN, dqk: 32, dv: 64, alpha: 0.125, bf16Kv: true },
        { ...PLAIN, heads: 3, dqk: 96, dv: 32, bf16Kv: true },
      ]) {
        const rows = await open(t, variant)
        const tiles = await open(t, { ...variant, tiles: true })
        for (const m of [1, 2, 31, 33, 70]) {
          for (const n of [0, 1, 15, 16, 31, 32, 33, 63, 64, 511, 512, 513]) {
            await compare(tiles, m, n, m * 1000 + n)
            const { inputs, outDims } = rows.make(m, n, createRandom(m + n))
            assert.deepEqual(
              await tiles.kernel.run(inputs, outDims),
              await rows.kernel.run(inputs, outDims),
              `${m} queries, ${n} keys`,
            )
          }
        }
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
