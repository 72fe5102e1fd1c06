import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { tempFolder } from '../test/fixtures.js'
import { digestOf, newSecret, readKeyFile } from './key-file.js'

const SHA = digestOf('one').toString('hex')
const GOOD = { name: 'web', sha256: SHA, scopes: ['rank'] }

describe('the key file', () => {
  const file = `${tempFolder({ after })}/keys.json`
  const read = (content: unknown) => {
    writeFileSync(file, typeof content === 'string' ? content : JSON.stringify(content))
    return readKeyFile(file)
  }

  test('gives keys with their digests; a share is 1 where there is none', () => {
    const ops = { ...GOOD, name: 'ops', sha256: digestOf('two').toString('hex') }
    const keys = read({ keys: [GOOD, { ...ops, requestsPerSec: 0.5, share: 3 }] })
    assert.deepEqual(keys, [
      { name: 'web', scopes: ['rank'], share: 1, digest: digestOf('one') },
      { name: 'ops', scopes: ['rank'], share: 3, requestsPerSec: 0.5, digest: digestOf('two') },
    ])
  })

  const cases: [name: string, content: unknown, message: RegExp][] = [
    ['is no JSON', '{"keys": [{"name": "SECRET', /keys.json: it is no JSON$/],
    ['has no keys', { keys: [] }, /keys.json \/keys must not have fewer than 1 items/],
    ['has an unknown field', { keys: [{ ...GOOD, scope: 'rank' }] }, /unknown fields: scope/],
    [
      'has a key in clear',
      { keys: [{ ...GOOD, sha256: 'pgr_x' }] },
      /\/keys\/0\/sha256 must match/,
    ],
    ['has a digest in capitals', { keys: [{ ...GOOD, sha256: SHA.toUpperCase() }] }, /sha256/],
    ['has a name that no log should show', { keys: [{ ...GOOD, name: 'a b' }] }, /0\/name must/],
    ['has an unknown scope', { keys: [{ ...GOOD, scopes: ['root'] }] }, /\/keys\/0\/scopes\/0 /],
    ['has a rate of 0', { keys: [{ ...GOOD, requestsPerSec: 0 }] }, /requestsPerSec must be/],
    ['has a name twice', { keys: [GOOD, { ...GOOD }] }, /every name .* got it again in "web"/],
    [
      'has a digest twice',
      { keys: [GOOD, { ...GOOD, name: 'b' }] },
      /every sha256 .* again in "b"/,
    ],
  ]
  for (const [name, content, message] of cases) {
    test(`is refused when it ${name}`, () => {
      assert.throws(() => read(content), { code: 'CONFIG_INVALID', message })
    })
  }

  test('is refused when it is not there, and never quoted when it is no JSON', () => {
    assert.throws(() => readKeyFile(`${file}.none`), { code: 'CONFIG_INVALID', message: /ENOENT/ })
    assert.throws(
      () => read('{"keys": SECRET'),
      (error: Error) => !error.message.includes('SECRET'),
    )
  })

  test('new secrets are 256 bits, never the same, and fit a header', () => {
    const secrets = Array.from({ length: 100 }, newSecret)
    assert.equal(new Set(secrets).size, 100)
    for (const secret of secrets) assert.match(secret, /^pgr_[\w-]{43}$/)
  })
})
