import assert from 'node:assert/strict'
import { mkdirSync, writeFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import {
  float32Bytes,
  type RawTensor,
  safetensorsBytes,
  smallConfig,
  tempFolder,
} from '../../test/fixtures.js'
import { type WeightSource, widthOf } from './checkpoint.js'
import { randomWeights } from './random.js'
import { openWeights } from './variants.js'
import { dense, type Tensor, writeWeightFile } from './weight-file.js'
import { bundleTensors, checkWeights, weightShapes } from './weights.js'

const config = smallConfig()
const source = randomWeights(config, 1)

function with_(changes: Partial<WeightSource>): WeightSource {
  return { ...source, ...changes }
}

/** Every tensor as it would be written. */
function allOf(tensors: ReadonlyMap<string, Tensor>): Map<string, number[]> {
  return new Map(
    [...tensors].map(([name, { chunks }]) => [name, [...chunks()].flatMap((c) => [...c])]),
  )
}

describe('checkWeights', () => {
  test('takes exactly the tensors that the config needs', () => {
    assert.equal(checkWeights(source, config), source)
  })

  test('names each missing tensor and the shape it should have', () => {
    for (const [name, dims] of weightShapes(config)) {
      const names = source.names.filter((other) => other !== name)
      assert.throws(() => checkWeights(with_({ names }), config), {
        code: 'WEIGHTS_INVALID',
        message: `tensor ${name} is missing: expected shape [${dims}]`,
      })
    }
  })

  test('names each misshaped tensor with what was expected and got', () => {
    for (const [name, dims] of weightShapes(config)) {
      const wrong = [
        dims.map((dim) => dim + 1),
        [...dims, 1],
        dims.slice(1),
        ...(dims.length === 2 && dims[0] !== dims[1] ? [dims.toReversed()] : []),
      ]
      for (const got of wrong) {
        const misshaped = with_({ dims: (other) => (other === name ? got : source.dims(other)) })
        assert.throws(() => checkWeights(misshaped, config), {
          code: 'WEIGHTS_INVALID',
          message: `tensor ${name} must have shape [${dims}], got [${got}]`,
        })
      }
    }
  })

  test('names tensors that have no place', () => {
    for (const extra of [
      'layers.2.uvqk.weight',
      'layers.0.uvqk.bias',
      '__proto__',
      'constructor',
    ]) {
      assert.throws(() => checkWeights(with_({ names: [...source.names, extra] }), config), {
        code: 'WEIGHTS_INVALID',
        message: `1 tensors have no place in this model: ["${extra}"]`,
      })
    }
  })
})

describe('bundleTensors', () => {
  test('names the tensor and the place of a value that is not finite', () => {
    for (const name of weightShapes(config).keys()) {
      for (const bad of [Number.NaN, Infinity, -Infinity]) {
        const read = (other: string) => {
          const data = source.read(other)
          if (other === name) data[data.length - 1] = bad
          return data
        }
        const readRows = (other: string, start: number, end: number) => {
          const width = widthOf(source.dims(other))
          return read(other).subarray(start * width, end * width)
        }
        const place = source.read(name).length - 1
        const written = () => allOf(bundleTensors(with_({ read, readRows }), config))
        assert.throws(written, {
          code: 'WEIGHTS_INVALID',
          message: `tensor ${name} must be finite, got ${bad} at ${place}`,
        })
      }
    }
  })

  test('lays tables behind one zero row, scaled by sqrt(D)', () => {
    const tensors = bundleTensors(source, config)
    const d = config.dModel
    assert.deepEqual(tensors.get('embedding')?.dims, [1 + 5 + 3 + 31 + 9 + 6 + 6, d])
    const data = allOf(tensors).get('embedding') ?? []
    const row = (i: number) => data.slice(i * d, (i + 1) * d)
    assert.ok(row(0).every((x) => x === 0))
    const expected = (name: string, i: number) =>
      [...source.read(`${name}.weight`).subarray(i * d, (i + 1) * d)].map((x) => Math.fround(x * 4))
    assert.deepEqual(row(1), expected('ctx.country', 0))
    assert.deepEqual(row(1 + 5 + 2), expected('ctx.device', 2))
    assert.deepEqual(row(1 + 5 + 3), expected('item.id', 0))
    assert.deepEqual(row(1 + 5 + 3 + 31 + 9 + 6 + 5), expected('aux.city', 5))
  })
})

describe('writeWeightFile', () => {
  test('refuses values that float16 cannot hold, naming the tensor, instead of writing infinity', (t) => {
    const folder = tempFolder(t)
    const tensors = new Map([['big', dense([2], Float32Array.of(1, 65_520))]])
    assert.throws(() => writeWeightFile(folder, 'w.bin', tensors, 'float16'), {
      code: 'WEIGHTS_INVALID',
      message: /big .+65520 at 1/,
    })
    const largest = new Map([['big', dense([1], Float32Array.of(65_519))]])
    writeWeightFile(folder, 'w.bin', largest, 'float16')
    writeWeightFile(folder, 'w.bin', tensors, 'float32')
  })
})

describe('openWeights', () => {
  test('checks a safetensors file against the config', (t) => {
    const folder = tempFolder(t)
    mkdirSync(folder, { recursive: true })
    const tensors: { [name: string]: RawTensor } = Object.fromEntries(
      source.names.map((name) => {
        const data = float32Bytes(source.read(name))
        return [name, { dtype: 'F32', shape: source.dims(name), data }]
      }),
    )
    const file = `${folder}/w.safetensors`
    writeFileSync(file, safetensorsBytes(tensors))
    const opened = openWeights(file, config)
    assert.deepEqual(opened.read('action_base'), source.read('action_base'))
    opened.close()
    const { action_base: _, ...others } = tensors
    writeFileSync(file, safetensorsBytes(others))
    assert.throws(() => openWeights(file, config), { message: /tensor action_base is missing/ })
  })
})
