import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { arraysIn, createSpareMemory } from './spare-memory.js'

const MIB = 2 ** 20

describe('spare memory', () => {
  test('gives what was given back to whoever needs at least half of it', () => {
    const memory = createSpareMemory(16 * MIB)
    const first = memory.take(3 * MIB)
    assert.equal(first.byteLength, 4 * MIB)
    memory.give(first)
    assert.notEqual(memory.take(2 * MIB), first)
    assert.notEqual(memory.take(5 * MIB), first)
    assert.equal(memory.take(4 * MIB), first)
    assert.notEqual(memory.take(4 * MIB), first, 'never twice')
  })

  test('keeps no more than its limit', () => {
    const memory = createSpareMemory(4 * MIB)
    const buffers = [memory.take(4 * MIB), memory.take(4 * MIB)]
    for (const buffer of buffers) memory.give(buffer)
    assert.equal(memory.take(4 * MIB), buffers[0])
    assert.notEqual(memory.take(4 * MIB), buffers[1])
  })

  test('gives what was given back twice to one only', () => {
    const memory = createSpareMemory(4 * MIB)
    const buffer = memory.take(MIB)
    memory.give(buffer)
    memory.give(buffer)
    assert.equal(memory.take(MIB), buffer)
    assert.notEqual(memory.take(MIB), buffer)
  })

  test('cuts arrays that do not overlap, at multiples of 64 bytes', () => {
    const { buffer, arrays } = arraysIn(createSpareMemory(MIB), [100, 0, 64, 3])
    assert.deepEqual(
      arrays.map(({ byteOffset, byteLength }) => [byteOffset, byteLength]),
      [
        [0, 100],
        [128, 0],
        [128, 64],
        [192, 3],
      ],
    )
    assert.ok(arrays.every((array) => array.buffer === buffer))
  })
})
