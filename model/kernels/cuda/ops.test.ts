// The ops' side towards ONNX Runtime and the files' functions, without a GPU: `build.sh --host` puts plain
// C++ behind the same ops, and engines with and without it must answer alike. What runs behind them on a
// GPU is tested there: parity.py.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { after, before, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { fromBinary } from '@bufbuild/protobuf'
import { ModelProtoSchema } from 'onnx-buf'
import {
  exportModel,
  type ModelFixture,
  randomTokens,
  smallConfig,
} from '../../../test/fixtures.js'
import { createCapiEngine } from '../../engine/capi/engine.js'
import { createRandom } from '../../random.js'
import { sliceTokens } from '../../tokens.js'

const SOURCES = fileURLToPath(new URL('../../../../model/kernels/cuda', import.meta.url))
const hasCompiler = spawnSync('g++', ['--version']).status === 0
const skip = !hasCompiler && 'no g++'

/** Logits of float16 graphs, and of the reference behind them, are within it of float64's. */
const TOLERANCE = 2e-2

const WIDE = { dModel: 24, heads: 2, dqk: 8, dv: 8, headHidden: 16, maxTokens: 40, positions: 7 }
const VARIANTS = {
  paper: {},
  'stu layer': {
    block: {
      ...{ silu: 'u', alpha: 0.25, rab: false, combine: 'concat', uvqkBias: true, outBias: false },
    },
  },
  'bias of both kinds, alpha': { block: { alpha: 0.5, uvqkBias: true } },
  'no affine norms, concat': {
    block: { normInAffine: false, normAttnAffine: false, combine: 'concat', silu: 'u' },
  },
  'keys wider than values': { dqk: 16 },
  'values wider than keys': { dv: 24, block: { rab: false } },
  'one layer': { layers: 1 },
} as const

describe('CUDA kernels: the ops on the host', { skip }, () => {
  const kernels = mkdtempSync(`${tmpdir()}/peregrine-test-`)
  after(() => rmSync(kernels, { recursive: true, force: true }))
  before(() => {
    const built = spawnSync(`${SOURCES}/build.sh`, ['--host', kernels])
    assert.equal(built.status, 0, String(built.stderr))
    const library = { provider: 'cpu', precision: 'fp16', file: 'libperegrine_kernels_host.so' }
    writeFileSync(`${kernels}/kernels.json`, JSON.stringify({ libraries: [library] }))
  })

  for (const [name, changes] of Object.entries(VARIANTS)) {
    test(`answer as the functions do: ${name}`, async (t) => {
      const config = smallConfig({ ...WIDE, ...changes })
      const model = exportModel(t, { config, precision: 'fp16', seed: 3 })
      const own = await answers(model, kernels)
      const stock = await answers(model, undefined)
      assert.deepEqual([own.library, stock.library], [true, false])
      for (const [what, logits] of own.logits) {
        const { expected } = stock
        const user = expected[Number(what.split(' ').at(-1))] ?? []
        const difference = largestDifference(logits, stock.logits.get(what) ?? [])
        const fromOracle = largestDifference(logits, user)
        assert.ok(difference < TOLERANCE, `${what}: ${difference} from the functions`)
        assert.ok(fromOracle < TOLERANCE, `${what}: ${fromOracle} from the oracle`)
      }
    })
  }

  test('find exact time buckets, and plans that there are kernels for', () => {
    const flags = ['-std=c++20', '-O1', '-Wall', '-Wextra', '-Werror']
    const built = spawnSync('g++', [...flags, `${SOURCES}/checks.cc`, '-o', `${kernels}/checks`])
    assert.equal(built.status, 0, String(built.stderr))
    const run = spawnSync(`${kernels}/checks`)
    assert.equal(run.status, 0, String(run.stdout))
  })

  test('no node of a float16 graph is called what no op is called', (t) => {
    const ops = readFileSync(`${SOURCES}/ops.cc`, 'utf8')
    for (const changes of Object.values(VARIANTS)) {
      const config = smallConfig({ ...WIDE, ...changes })
      const { bundle } = exportModel(t, { config, precision: 'fp16' })
      for (const { file } of Object.values(bundle.manifest.graphs)) {
        const { functions, graph } = fromBinary(
          ModelProtoSchema,
          readFileSync(`${bundle.folder}/${file}`),
        )
        const called = new Set(
          graph?.node.filter(({ domain }) => domain === 'peregrine').map(({ opType }) => opType),
        )
        assert.deepEqual([...called].sort(), functions.map(({ name }) => name).sort(), file)
        for (const each of called) assert.ok(ops.includes(`"${each}"`), `${file}: ${each}`)
      }
    }
  })
})

/** Logits by every way there is, keyed by the way and the user's number, and the oracle's. */
async function answers(model: ModelFixture, kernels: string | undefined) {
  let library = false
  const engine = await createCapiEngine({
    bundle: model.bundle,
    ...(kernels === undefined ? {} : { kernels }),
    onEvent: ({ kind }) => {
      library ||= kind === 'kernels'
    },
  })
  try {
    const random = createRandom(5)
    const users = [9, 4, 0].map((events, i) =>
      randomTokens(model, random, { events, candidates: 1 + 3 * i, series: i % 2 }),
    )
    const logits = new Map<string, Float32Array>()
    const ranked = await engine.rank(users)
    for (const [u, { history, candidates, queryTime }] of users.entries()) {
      logits.set(`rank of user ${u}`, ranked[u] ?? new Float32Array(0))
      const whole = await engine.prefill(history)
      logits.set(`score of user ${u}`, await engine.score(whole, candidates, queryTime))
      const split = Math.min(5, history.length)
      const past = await engine.prefill(sliceTokens(history, 0, split))
      const rest = sliceTokens(history, split, history.length)
      const appended = await engine.prefill(rest, { handle: past, tokens: split })
      logits.set(`append of user ${u}`, await engine.score(appended, candidates, queryTime))
      for (const each of [whole, past, appended]) engine.release(each)
    }
    const expected = users.map(
      ({ history, candidates, queryTime }) =>
        model.reference(history, candidates, queryTime).logits,
    )
    return { library, logits, expected }
  } finally {
    await engine.close()
  }
}

/** NaN where one of them is. */
function largestDifference(got: ArrayLike<number>, expected: ArrayLike<number>): number {
  assert.equal(got.length, expected.length)
  return Math.max(0, ...Array.from(got, (x, i) => Math.abs(x - (expected[i] ?? Number.NaN))))
}
