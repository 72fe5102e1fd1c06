import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { generate } from './generate.js'

test('the clients’ types are those of the schemas: npm run generate:clients was run', () => {
  const files = generate()
  assert.equal(files.size, 2)
  for (const [path, text] of files) assert.equal(readFileSync(path, 'utf8'), text, path)
})
