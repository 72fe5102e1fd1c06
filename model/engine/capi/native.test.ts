import assert from 'node:assert/strict'
import { test } from 'node:test'
import { callAsync, loadLibrary } from './native.js'

const abs = loadLibrary(null).func('abs', 'int', ['int'])

test('calls beyond what koffi takes at once wait for their turn and give their own results', async () => {
  const numbers = Array.from({ length: 2000 }, (_, i) => i)
  assert.deepEqual(await Promise.all(numbers.map((i) => callAsync(abs, -i))), numbers)
})
