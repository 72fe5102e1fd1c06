import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { test } from 'node:test'
import { kernelFolder } from './kernel-folder.js'

test('off is no folder, a path is itself, auto is a folder with kernels.json or none', () => {
  for (const provider of ['cpu', 'cuda'] as const) {
    assert.equal(kernelFolder('off', provider), undefined)
    assert.equal(kernelFolder('/some/where', provider), '/some/where')
    const found = kernelFolder('auto', provider)
    assert.ok(found === undefined || existsSync(`${found}/kernels.json`), found)
    if (found !== undefined) assert.equal(found.endsWith('/cuda'), provider === 'cuda')
  }
})
