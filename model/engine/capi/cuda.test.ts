import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createProviderOptions } from './cuda.js'
import { findLibrary } from './library.js'
import { loadOrt } from './ort.js'

describe('createProviderOptions', () => {
  const ort = loadOrt(findLibrary())
  const fails = () => {
    throw new Error('Failed to load library')
  }

  test('says ENGINE_UNAVAILABLE, which another engine may help, where the provider does not load, and leaves nothing', () => {
    const before = ort.live()
    const expected = { code: 'ENGINE_UNAVAILABLE', message: /CUDA provider: Failed to load/ }
    for (const broken of [
      { ...ort, UpdateCUDAProviderOptions: fails },
      { ...ort, CreateCUDAProviderOptions: fails },
    ]) {
      assert.throws(() => createProviderOptions(broken, 0), expected)
      assert.equal(ort.live(), before)
    }
  })
})
