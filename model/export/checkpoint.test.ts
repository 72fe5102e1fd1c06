import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { smallConfig } from '../../test/fixtures.js'
import { SMALL_DLRM, SMALL_RESEARCH } from '../../test/small-checkpoints.js'
import { type HstuConfig, parseConfig } from '../config.js'
import { roundedToBf16, transposed, type WeightSource } from './checkpoint.js'
import { dlrmTensors, randomDlrm } from './dlrm-v3/tensors.js'
import { randomResearch } from './research/weights.js'
import { exportVariant } from './variants.js'

const research = parseConfig(SMALL_RESEARCH)
const dlrm = parseConfig(SMALL_DLRM)

type Family = {
  readonly config: HstuConfig
  readonly source: WeightSource
  /** A buffer of the state dict. */
  readonly buffer: string
}

function familyOf(config: HstuConfig): Family {
  switch (config.variant) {
    case 'research':
      return { config, source: randomResearch(config, 1), buffer: '_attn_mask' }
    case 'dlrm-v3':
      return {
        config,
        source: randomDlrm(config, 1),
        buffer: '_hstu_transducer._output_postprocessor._period_units',
      }
    case 'paper':
      throw new Error('its checkpoints are this project’s own')
  }
}

function renamed(source: WeightSource, rename: (name: string) => string): WeightSource {
  const former = new Map(source.names.map((name) => [rename(name), name]))
  return {
    names: [...former.keys()],
    dims: (name) => source.dims(former.get(name) ?? ''),
    read: (name) => source.read(former.get(name) ?? ''),
  }
}

/** The source with one more tensor, or with another in its place. */
function with_(source: WeightSource, name: string, dims: number[], values: number[]) {
  return {
    names: [...new Set([...source.names, name])],
    dims: (other: string) => (other === name ? dims : source.dims(other)),
    read: (other: string) => (other === name ? Float32Array.from(values) : source.read(other)),
  }
}

for (const family of [research, dlrm].map(familyOf)) {
  const { config, source, buffer } = family
  const { checkpoint } = exportVariant(config)
  const refuses = (given: WeightSource, message: string | RegExp) =>
    assert.throws(() => checkpoint(given), { code: 'WEIGHTS_INVALID', message })

  describe(`a ${config.variant} checkpoint`, () => {
    test('gives the same tensors with and without the prefix of DDP', () => {
      const plain = checkpoint(source)
      const wrapped = checkpoint(renamed(source, (name) => `module.${name}`))
      assert.deepEqual(wrapped.names, plain.names)
      for (const name of plain.names) {
        assert.deepEqual(wrapped.read(name), plain.read(name), name)
        const size = plain.dims(name).reduce((product, dim) => product * dim, 1)
        assert.equal(plain.read(name).length, size, name)
      }
    })

    test('is refused for each missing tensor, with its name and shape', () => {
      for (const name of source.names) {
        const names = source.names.filter((other) => other !== name)
        const expected = `tensor ${name} is missing: expected shape [${source.dims(name)}]`
        refuses({ ...source, names }, expected)
      }
    })

    test('is refused for each misshaped tensor, with what was expected and got', () => {
      for (const name of source.names) {
        const dims = source.dims(name)
        for (const got of [[...dims, 1], dims.map((dim) => dim + 1), dims.slice(1)]) {
          const given = with_(source, name, got, [])
          refuses(given, `tensor ${name} must have shape [${dims}], got [${got}]`)
        }
      }
    })

    test('is refused for tensors that have no place in the model', () => {
      refuses(with_(source, 'optimizer.step', [1], [0]), /^1 tensors .*optimizer\.step/)
      // A prefix that only some have is none.
      const half = renamed(source, (name) => (name.includes('.1.') ? `module.${name}` : name))
      refuses(half, /is missing/)
    })

    test('may hold buffers, which are not weights', () => {
      const values = [3600, 86_400]
      assert.ok(!checkpoint(with_(source, buffer, [1, 2], values)).names.includes(buffer))
    })

    test('of another variant is called by its name', () => {
      const others = [research, dlrm].filter((other) => other !== config)
      for (const other of others) {
        refuses(familyOf(other).source, new RegExp(`is a tensor of variant ${other.variant}$`))
      }
      refuses(exportVariant(smallConfig()).random(1), /is a tensor of variant paper$/)
    })

    test('is refused at a value that is not finite, with the tensor’s name', () => {
      const [name = ''] = source.names
      const dims = [...source.dims(name)]
      const values = Array.from(source.read(name))
      values[values.length - 1] = Number.NaN
      const opened = checkpoint(with_(source, name, dims, values))
      const written = () => {
        for (const { chunks } of exportVariant(config).tensors(opened).values()) [...chunks()]
      }
      assert.throws(written, {
        code: 'WEIGHTS_INVALID',
        message: `tensor ${name} must be finite, got NaN at ${values.length - 1}`,
      })
    })
  })
}

describe('buffers of a dlrm-v3 checkpoint', () => {
  const { config, source } = familyOf(dlrm)
  const refuses = (name: string, values: number[], message: RegExp) =>
    assert.throws(
      () => exportVariant(config).checkpoint(with_(source, name, [1, values.length], values)),
      { code: 'WEIGHTS_INVALID', message },
    )

  test('must say what the config says', () => {
    const encoder = '_hstu_transducer._input_preprocessor._action_encoder'
    refuses(
      `${encoder}._combined_action_weights`,
      [1, 2, 4],
      /_combined_action_weights must hold \[1,4,2\], got \[1,2,4\]/,
    )
    const post = '_hstu_transducer._output_postprocessor'
    refuses(`${post}._period_units`, [3600, 604_800], /_period_units must hold \[3600,86400\]/)
    refuses(`${post}._units_per_period`, [24, 31], /_units_per_period must hold \[24,7\]/)
  })

  test('and what belongs to extra item features may be there without any, whatever its size', () => {
    const alone = parseConfig({ ...SMALL_DLRM, extraItemFeatures: [], itemTower: ['id'] })
    if (alone.variant !== 'dlrm-v3') throw new Error('another variant')
    const name = '_hstu_transducer._input_preprocessor._additional_embedding_mlp.0.weight'
    assert.ok(!dlrmTensors(alone).some((tensor) => tensor.name === name))
    const given = with_(randomDlrm(alone, 1), name, [5, 0], [])
    assert.ok(exportVariant(alone).checkpoint(given).names.includes('embedding'))
  })
})

test('transposed turns rows into columns', () => {
  const turned = transposed(Float32Array.of(1, 2, 3, 4, 5, 6), 2, 3)
  assert.deepEqual([...turned], [1, 4, 2, 5, 3, 6])
})

test('roundedToBf16 rounds to the nearest number of eight bits, ties to even, and leaves its source alone', () => {
  const values = Float32Array.of(1, 1 + 2 ** -8, 1 + 3 * 2 ** -8, 1 + 2 ** -8 + 2 ** -20, -0.1, 0)
  const source = { names: ['w'], dims: () => [6], read: () => values }
  const given = values.slice()
  assert.deepEqual(
    [...roundedToBf16(source).read('w')],
    [1, 1, 1 + 2 ** -6, 1 + 2 ** -7, -0.10009765625, 0],
  )
  assert.deepEqual(values, given)
})
