import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { test } from 'node:test'
import { kernelFolder } from './kernel-folder.js'

test('off is no folder, a path is itself, auto is a folder with kernels.json or none', () => {
  assert.equal(kernelFolder('off'), undefined)
  assert.equal(kernelFolder('/some/where'), '/some/where')
  const found = kernelFolder('auto')
  assert.ok(found === undefined || existsSync(`${found}/kernels.json`), found)
})
