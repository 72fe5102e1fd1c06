import assert from 'node:assert/strict'
import { copyFileSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { fromBinary, toBinary } from '@bufbuild/protobuf'
import { ModelProtoSchema, type TensorProto } from 'onnx-buf'
import { copyBundle, exportModel, type Scope } from '../../../test/fixtures.js'
import { findLibrary } from './library.js'
import { hostMemory } from './memory.js'
import { loadOrt } from './ort.js'
import { shareWeights } from './weights.js'

const GRAPHS = ['prefill.onnx', 'score.onnx', 'rank.onnx']
/** (61, 16) float32 at 0. */
const TENSOR = 'embedding'

describe('shareWeights', () => {
  const ort = loadOrt(findLibrary())
  const host = hostMemory(ort)
  after(() => host.close())
  const model = exportModel({ after })
  const size = readFileSync(`${model.bundle.folder}/weights.bin`).length

  /** A copy of the bundle, with one tensor of one graph changed. */
  const tamper = (scope: Scope, change: (tensor: TensorProto, all: TensorProto[]) => void) => {
    const folder = copyBundle(scope, model.bundle)
    const file = `${folder}/score.onnx`
    const graph = fromBinary(ModelProtoSchema, readFileSync(file))
    const tensors = graph.graph?.initializer ?? []
    const tensor = tensors.find(({ name }) => name === TENSOR)
    assert.ok(tensor !== undefined)
    change(tensor, tensors)
    writeFileSync(file, toBinary(ModelProtoSchema, graph))
    return folder
  }
  const { manifest } = model.bundle
  const refuses = async (folder: string, message: RegExp, more: readonly string[] = []) => {
    const before = ort.live()
    const own = manifest.files['weights.bin']
    assert.ok(own !== undefined)
    const files = { ...manifest.files, ...Object.fromEntries(more.map((name) => [name, own])) }
    await assert.rejects(shareWeights(ort, host, { folder, manifest: { ...manifest, files } }), {
      code: 'MODEL_CONTRACT',
      message,
    })
    assert.equal(ort.live(), before)
  }
  const set = (tensor: TensorProto, key: string, value: string | number) => {
    for (const entry of tensor.externalData) if (entry.key === key) entry.value = String(value)
  }

  test('maps the file once, for every matrix of every graph, and leaves nothing', async () => {
    const before = ort.live()
    const weights = await shareWeights(ort, host, model.bundle)
    assert.equal(weights.bytes, size)
    assert.ok(weights.values.has(TENSOR) && weights.values.has('head.fc2.weight'))
    assert.equal(ort.live(), before + weights.values.size)
    await weights.release()
    assert.equal(ort.live(), before)
    await weights.release()
    assert.equal(ort.live(), before)
  })

  const numbers = ['-4', '-1', '1', '3', '1.5', 'NaN', 'Infinity', '1e400', 'x', '4 4']
  for (const offset of numbers) {
    test(`refuses the offset ${offset}`, async (t) => {
      await refuses(
        tamper(t, (tensor) => set(tensor, 'offset', offset)),
        new RegExp(`score\\.onnx: initializer embedding of .+ at ${offset} of weights\\.bin`),
      )
    })
  }
  for (const length of [...numbers, '0', '', '3900', '3908', '4611686018427387904']) {
    test(`refuses the length "${length}"`, async (t) => {
      await refuses(
        tamper(t, (tensor) => set(tensor, 'length', length)),
        new RegExp(`must be \\d+ aligned bytes, got ${length} at 0`),
      )
    })
  }

  test('refuses what ends after the file, by one element or by exabytes', async (t) => {
    for (const offset of [4 * Math.floor(size / 4), size - 4, 2 ** 40, 2 ** 52]) {
      await refuses(
        tamper(t, (tensor) => set(tensor, 'offset', offset)),
        /score\.onnx: initializer embedding lies elsewhere/,
      )
    }
    const folder = copyBundle(t, model.bundle)
    for (const left of [size >> 1, 4, 1, 0]) {
      truncateSync(`${folder}/weights.bin`, left)
      await refuses(folder, new RegExp(`must end within ${left} bytes, ends at \\d+`))
    }
    // Beyond the numbers that are exact.
    await refuses(
      tamper(t, (tensor) => set(tensor, 'offset', '9007199254740992')),
      /at 9007199254740992/,
    )
  })

  for (const location of [
    '../weights.bin',
    '/etc/passwd',
    '',
    './weights.bin',
    'x\0y',
    'toString',
  ]) {
    test(`refuses the location ${JSON.stringify(location)}`, async (t) => {
      await refuses(
        tamper(t, (tensor) => set(tensor, 'location', location)),
        /initializer embedding must lie in a file that the manifest lists/,
      )
    })
  }

  test('refuses a file that the manifest does not list, for a vector too', async (t) => {
    const other = (tensor: TensorProto) => set(tensor, 'location', 'other.bin')
    const folder = tamper(t, (_, all) => all.filter(({ dims }) => dims.length === 1).forEach(other))
    copyFileSync(`${folder}/weights.bin`, `${folder}/other.bin`)
    await refuses(folder, /a file that the manifest lists, got "other\.bin"/)
  })

  test('refuses a location that is missing, a folder or empty', async (t) => {
    const everywhere = (location: string) => {
      const folder = copyBundle(t, model.bundle)
      for (const name of GRAPHS) {
        const graph = fromBinary(ModelProtoSchema, readFileSync(`${folder}/${name}`))
        for (const tensor of graph.graph?.initializer ?? []) set(tensor, 'location', location)
        writeFileSync(`${folder}/${name}`, toBinary(ModelProtoSchema, graph))
      }
      return folder
    }
    await refuses(everywhere('absent.bin'), /weights do not open: ENOENT.+absent\.bin/, [
      'absent.bin',
    ])
    await refuses(everywhere('vectors'), /vectors must be a file/, ['vectors'])
    const folder = everywhere('empty.bin')
    writeFileSync(`${folder}/empty.bin`, '')
    await refuses(folder, /must end within 0 bytes/, ['empty.bin'])
  })

  const dims: readonly (readonly bigint[])[] = [
    [-61n, -16n],
    [61n, 15n],
    [0n, 16n],
    [61n, 2n ** 62n],
    [2n ** 62n, 2n ** 62n],
  ]
  for (const each of dims) {
    test(`refuses the dims ${each.join(' x ')}`, async (t) => {
      const folder = tamper(t, (tensor) => {
        tensor.dims = [...each]
      })
      await refuses(folder, /initializer embedding of .+ must be/)
    })
  }

  test('refuses a type that bundles do not have, of whatever width', async (t) => {
    for (const type of [0, 2, 6, 7, 8, 11, 16, 99]) {
      const folder = tamper(t, (tensor) => {
        tensor.dataType = type
      })
      await refuses(folder, /initializer embedding/)
    }
  })

  test('refuses one name at two places, in one graph and in two', async (t) => {
    await refuses(
      tamper(t, (tensor) => set(tensor, 'offset', 64)),
      /score\.onnx: initializer embedding lies elsewhere/,
    )
    const twice = tamper(t, (tensor, all) => {
      const other = all.find(({ name }) => name === 'head.fc1.weight')
      assert.ok(other !== undefined)
      other.name = tensor.name
    })
    await refuses(twice, /score\.onnx: initializer embedding lies elsewhere/)
  })

  test('frees what it made when ONNX Runtime refuses a tensor', async () => {
    const before = ort.live()
    const failing = {
      ...ort,
      CreateTensorWithDataAsOrtValue(
        ...args: Parameters<typeof ort.CreateTensorWithDataAsOrtValue>
      ) {
        if (ort.live() > before + 2) throw new Error('no more')
        return ort.CreateTensorWithDataAsOrtValue(...args)
      },
    }
    await assert.rejects(shareWeights(failing, host, model.bundle), /no more/)
    assert.equal(ort.live(), before)
  })
})
