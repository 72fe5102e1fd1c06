import assert from 'node:assert/strict'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { tempFolder } from '../test/fixtures.js'
import { collectGarbage } from '../test/gc.js'
import { readOnlyFile } from './mapped-file.js'

describe('readOnlyFile', () => {
  test('gives a file’s bytes, mapped or copied, from one byte to more than a page', (t) => {
    const file = `${tempFolder(t)}/file`
    for (const size of [0, 1, 4095, 4096, 4097, 1_000_003]) {
      const bytes = Uint8Array.from({ length: size }, (_, i) => (i * 31) % 251)
      writeFileSync(file, bytes)
      for (const isMapped of [true, false]) {
        assert.deepEqual(new Uint8Array(readOnlyFile(file, isMapped)), bytes)
      }
    }
  })

  test('stays readable when the file is removed', (t) => {
    const file = `${tempFolder(t)}/file`
    writeFileSync(file, 'still here')
    const buffer = readOnlyFile(file)
    rmSync(file)
    assert.equal(Buffer.from(buffer).toString(), 'still here')
  })

  test('throws where there is no file', (t) => {
    const file = `${tempFolder(t)}/none`
    for (const isMapped of [true, false]) {
      assert.throws(() => readOnlyFile(file, isMapped), { code: 'ENOENT' })
    }
  })

  test('is unmapped once nobody has it', {
    skip: process.platform !== 'linux' && 'needs /proc',
  }, async (t) => {
    const file = `${tempFolder(t)}/file`
    writeFileSync(file, new Uint8Array(100_000))
    const isMapped = () => readFileSync('/proc/self/maps', 'utf8').includes(file)
    const held = { buffer: [readOnlyFile(file)] }
    assert.equal(isMapped(), true)
    assert.equal(held.buffer[0]?.byteLength, 100_000)
    held.buffer = []
    for (let tries = 0; tries < 50 && isMapped(); tries++) {
      collectGarbage()
      await new Promise((resolve) => setImmediate(resolve))
    }
    assert.equal(isMapped(), false)
  })
})
