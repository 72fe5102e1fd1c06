import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { eventsKey, kvKey, kvVariant, userHash } from './key.js'

describe('userHash', () => {
  test('is 22 characters of SHA-256 in base64url, for any id', () => {
    // printf u1 | openssl dgst -sha256 -binary | base64 | tr +/ -_ | cut -c -22
    assert.equal(userHash('u1'), 'u4IDDbwryroyqQvy4geoSo')
    for (const id of ['', 'ü', '{u1}', 'a'.repeat(256), '\ud800']) {
      assert.match(userHash(id), /^[\w-]{22}$/, JSON.stringify(id))
    }
  })

  test('differs between 100,000 ids', () => {
    const hashes = new Set(Array.from({ length: 100_000 }, (_, i) => userHash(`user-${i}`)))
    assert.equal(hashes.size, 100_000)
  })
})

describe('keys', () => {
  test('carry the hash of the user as their only hash tag, and never the id', () => {
    const user = userHash('alice{b}')
    for (const key of [eventsKey(user), kvKey(kvVariant('abc123', 'fp16'), user)]) {
      assert.equal(/\{([^}]*)\}/.exec(key)?.[1], user)
      assert.ok(!key.includes('alice'))
    }
    assert.equal(eventsKey(user), `peregrine:{${user}}:events`)
    assert.equal(kvKey(kvVariant('abc123', 'fp16'), user), `peregrine:{${user}}:kv:abc123:fp16`)
  })
})
