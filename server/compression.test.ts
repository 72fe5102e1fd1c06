import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import {
  brotliCompressSync,
  brotliDecompressSync,
  deflateSync,
  gunzipSync,
  gzipSync,
} from 'node:zlib'
import { client, LIMITS, resultOf } from '../test/plain-ranker.js'

const BODY = JSON.stringify({ user: { id: 'u' }, candidates: ['a', 'b'] })
/** Makes answers of some 60 kB. */
const LONG = {
  warnings: Array.from(
    { length: 1000 },
    (_, count) =>
      ({ code: 'UNKNOWN_ITEM', message: 'an item that the model does not know', count }) as const,
  ),
}

describe('compression', () => {
  test('a body in gzip, deflate or brotli is read', async (t) => {
    const post = await client(t)
    const plain = await post(BODY)
    for (const [encoding, pack] of [
      ['gzip', gzipSync],
      ['deflate', deflateSync],
      ['br', brotliCompressSync],
    ] as const) {
      const res = await post(pack(BODY), '/v1/rank', { 'content-encoding': encoding })
      assert.equal(res.statusCode, 200, encoding)
      assert.deepEqual(res.json().items, plain.json().items)
    }
  })

  test('an answer is compressed for those who accept it, where it is large', async (t) => {
    const post = await client(t, async (input) => resultOf(input, LONG))
    const plain = await post(BODY)
    assert.equal(plain.headers['content-encoding'], undefined)
    for (const [encoding, unpack] of [
      ['gzip', gunzipSync],
      ['br', brotliDecompressSync],
    ] as const) {
      const res = await post(BODY, '/v1/rank', { 'accept-encoding': encoding })
      assert.equal(res.headers['content-encoding'], encoding)
      assert.ok(res.rawPayload.length < plain.rawPayload.length / 5)
      const { items, warnings } = JSON.parse(unpack(res.rawPayload).toString())
      assert.deepEqual({ items, warnings }, { items: plain.json().items, warnings: LONG.warnings })
    }
    const small = await client(t)
    const res = await small(BODY, '/v1/rank', { 'accept-encoding': 'gzip' })
    assert.equal(res.headers['content-encoding'], undefined)
  })

  test('what unpacks to more than the body limit is 413, before it is all unpacked', async (t) => {
    const post = await client(t)
    const bomb = gzipSync(Buffer.alloc(256 * 2 ** 20, ' '))
    assert.ok(bomb.length > LIMITS.bodyLimitBytes)
    const small = gzipSync(Buffer.alloc(4 * 2 ** 20, ' '))
    assert.ok(small.length < LIMITS.bodyLimitBytes)
    for (const bytes of [bomb, small]) {
      const res = await post(bytes, '/v1/rank', { 'content-encoding': 'gzip' })
      assert.equal(res.statusCode, 413)
      assert.equal(res.json().code, 'LIMIT_EXCEEDED')
    }
  })

  test('bytes that are not what they are called, and unknown encodings, are refused', async (t) => {
    const post = await client(t)
    const garbage = await post(Buffer.from('garbage'), '/v1/rank', { 'content-encoding': 'gzip' })
    assert.equal(garbage.statusCode, 400)
    assert.equal(garbage.json().code, 'INVALID_REQUEST')
    const cut = await post(gzipSync(BODY).subarray(0, 20), '/v1/rank', {
      'content-encoding': 'gzip',
    })
    assert.equal(cut.statusCode, 400)
    const unknown = await post(BODY, '/v1/rank', { 'content-encoding': 'lzma' })
    assert.equal(unknown.statusCode, 415)
    assert.match(unknown.json().message, /content-encoding must be gzip, deflate or br, got "lzma"/)
  })
})
