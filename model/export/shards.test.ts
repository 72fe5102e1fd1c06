import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { float32Bytes, type Scope, safetensorsBytes, tempFolder } from '../../test/fixtures.js'
import { openCheckpoint } from './shards.js'

const TENSORS = { a: [1, 2, 3, 4], b: [5, 6], c: [7, 8, 9, 10, 11, 12] }
const MAP = { a: 'one.safetensors', b: 'two.safetensors', c: 'one.safetensors' }

/** Two shards, and an index that says what `map` says. */
function shards(scope: Scope, map: object, more: object = {}): string {
  const folder = tempFolder(scope)
  for (const file of ['one.safetensors', 'two.safetensors']) {
    const own = Object.entries({ ...TENSORS, ...more }).filter(
      ([name]) => (Object.entries(MAP).find(([other]) => other === name)?.[1] ?? file) === file,
    )
    const tensors = own.map(([name, values]) => {
      const data = float32Bytes(Float32Array.from(values))
      return [name, { dtype: 'F32', shape: [values.length / 2, 2], data }] as const
    })
    writeFileSync(`${folder}/${file}`, safetensorsBytes(Object.fromEntries(tensors)))
  }
  const file = `${folder}/weights.safetensors`
  writeFileSync(`${file}.index.json`, JSON.stringify({ metadata: {}, weight_map: map }))
  return file
}

describe('openCheckpoint', () => {
  test('reads tensors from the files that an index names', (t) => {
    const opened = openCheckpoint(shards(t, MAP))
    t.after(() => opened.close())
    assert.deepEqual([...opened.names].sort(), ['a', 'b', 'c'])
    for (const [name, values] of Object.entries(TENSORS)) {
      assert.deepEqual([...opened.read(name)], values)
      assert.deepEqual(opened.dims(name), [values.length / 2, 2])
      assert.deepEqual([...opened.readRows(name, 0, 1)], values.slice(0, 2))
    }
  })

  test('takes the one file where there is one', (t) => {
    const file = shards(t, MAP)
    const data = float32Bytes(Float32Array.of(1, 2))
    writeFileSync(file, safetensorsBytes({ x: { dtype: 'F32', shape: [2], data } }))
    const opened = openCheckpoint(file)
    t.after(() => opened.close())
    assert.deepEqual(opened.names, ['x'])
  })

  test('refuses an index that does not fit its files', (t) => {
    const cases: readonly (readonly [object, RegExp, object?])[] = [
      [{ ...MAP, d: 'one.safetensors' }, /no tensor "d" where it says/],
      [{ ...MAP, a: 'two.safetensors' }, /no tensor "a" where it says/],
      [{ ...MAP, a: '../one.safetensors' }, /must lie beside it, got "\.\.\/one/],
      [{ ...MAP, a: 'three.safetensors' }, /cannot open .*three\.safetensors/],
      [{ a: MAP.a, b: MAP.b }, /must name each tensor of its files once, got "c"/],
      [MAP, /must name each tensor of its files once, got "d"/, { d: [1, 2] }],
      [{ ...MAP, a: 1 }, /weight_map\/a/],
    ]
    for (const [map, message, more] of cases) {
      assert.throws(() => openCheckpoint(shards(t, map, more)), {
        code: 'WEIGHTS_INVALID',
        message,
      })
    }
  })

  test('refuses a folder without either by the name of the file', (t) => {
    const file = `${tempFolder(t)}/weights.safetensors`
    assert.throws(() => openCheckpoint(file), { message: /cannot open .*weights\.safetensors/ })
  })
})
