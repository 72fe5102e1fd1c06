import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createRandom } from '../model/random.js'
import type { HistoryTokens } from '../model/tokens.js'
import { digestChain, PAGE_TOKENS } from './digest.js'
import { userHash } from './key.js'
import {
  checksumSeed,
  decodeHead,
  encodeHead,
  openPage,
  type PageShape,
  pageFields,
  pageTokens,
  sealPage,
} from './page.js'

const shape: PageShape = { codec: 'fp16', layers: 2, kWidth: 8, vWidth: 4, maxTokens: 1000 }
const seed = checksumSeed('v1', userHash('u1'))
const token = new Uint8Array(16).fill(7)

function tokensOf(length: number): HistoryTokens {
  return {
    rows: Int32Array.from({ length }, (_, i) => i),
    actions: new Int32Array(length),
    times: new Float64Array(length),
    length,
  }
}

describe('head of an entry', () => {
  test('decoding inverts encoding at every length around a page', () => {
    for (const length of [1, 63, 64, 65, 127, 128, 129, 1000]) {
      const chain = digestChain(tokensOf(length))
      const raw = encodeHead(shape, chain, token, seed)
      assert.deepEqual(decodeHead(raw, shape, seed), { chain, raw: new Uint8Array(raw) })
    }
  })

  test('every truncation, extension and flipped bit is KV_CORRUPT', () => {
    const raw = encodeHead(shape, digestChain(tokensOf(130)), token, seed)
    for (let length = 0; length < raw.length; length++) {
      assert.throws(() => decodeHead(raw.subarray(0, length), shape, seed), { code: 'KV_CORRUPT' })
    }
    const longer = Buffer.concat([raw, Buffer.alloc(1)])
    assert.throws(() => decodeHead(longer, shape, seed), { code: 'KV_CORRUPT' })
    for (let bit = 0; bit < raw.length * 8; bit++) {
      const flipped = Buffer.from(raw)
      flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7))
      assert.throws(() => decodeHead(flipped, shape, seed), { code: 'KV_CORRUPT' }, `bit ${bit}`)
    }
  })

  test('more tokens than the model holds are KV_CORRUPT, however well they are sealed', () => {
    const raw = encodeHead(shape, digestChain(tokensOf(1001)), token, seed)
    assert.throws(() => decodeHead(raw, shape, seed), {
      code: 'KV_CORRUPT',
      message: /1001 tokens/,
    })
    const huge = encodeHead(shape, digestChain(tokensOf(5000)), token, seed)
    assert.throws(() => decodeHead(huge, shape, seed), { code: 'KV_CORRUPT', message: /bytes/ })
  })

  test('another user, another model and another shape are KV_CORRUPT', () => {
    const raw = encodeHead(shape, digestChain(tokensOf(70)), token, seed)
    const others = [checksumSeed('v2', userHash('u1')), checksumSeed('v1', userHash('u2'))]
    for (const other of others) {
      assert.throws(() => decodeHead(raw, shape, other), { code: 'KV_CORRUPT' })
    }
    const shapes: PageShape[] = [
      { ...shape, codec: 'int8' },
      { ...shape, layers: 3 },
      { ...shape, kWidth: 4, vWidth: 8 },
    ]
    for (const other of shapes) {
      assert.throws(() => decodeHead(raw, other, seed), {
        code: 'KV_CORRUPT',
        message: /expected K\/V of .*, got fp16 2x\(8\+4\)/,
      })
    }
  })
})

describe('pages', () => {
  test('cover the history in order, the last one what is left', () => {
    for (let length = 0; length <= 3 * PAGE_TOKENS; length++) {
      const chain = digestChain(tokensOf(length))
      const fields = pageFields(chain, true)
      assert.equal(fields.length, Math.ceil(length / PAGE_TOKENS))
      assert.equal(new Set(fields).size, fields.length)
      const covered = fields.reduce((sum, _, i) => sum + pageTokens(chain, i), 0)
      assert.equal(covered, length)
    }
  })

  test('keep their names when tokens follow, unless an append changes the K/V before it', () => {
    const before = digestChain(tokensOf(130))
    const after = digestChain(tokensOf(140))
    assert.deepEqual(pageFields(after, true).slice(0, 2), pageFields(before, true).slice(0, 2))
    assert.notEqual(pageFields(after, true)[2], pageFields(before, true)[2])
    const names = new Set([...pageFields(before, false), ...pageFields(after, false)])
    assert.equal(names.size, 6)
  })

  test('opening inverts sealing', () => {
    const parts = [Uint8Array.of(1, 2, 3), new Uint8Array(0), Uint8Array.of(4)]
    const page = sealPage('field', parts, seed)
    assert.deepEqual([...openPage('field', page, 4, seed)], [1, 2, 3, 4])
  })

  test('10,000 random mutations of a page are KV_CORRUPT, each of them', () => {
    const random = createRandom(11)
    const below = (n: number) => Math.floor(random() * n)
    const rows = Uint8Array.from({ length: 3000 }, () => below(256))
    const page = sealPage('field', [rows], seed)
    for (let i = 0; i < 10_000; i++) {
      const mutated = Buffer.from(page)
      for (let flips = 1 + below(4); flips > 0; flips--) {
        const at = below(mutated.length)
        mutated[at] = (mutated[at] ?? 0) ^ (1 + below(255))
      }
      if (mutated.equals(page)) continue
      assert.throws(() => openPage('field', mutated, rows.length, seed), { code: 'KV_CORRUPT' })
    }
  })

  test('a page under another field, user or model, or of another length, is KV_CORRUPT', () => {
    const page = sealPage('field', [new Uint8Array(10)], seed)
    const refused: [string, Buffer, number, number][] = [
      ['other', page, 10, seed],
      ['field', page, 10, checksumSeed('v1', userHash('u2'))],
      ['field', page, 10, checksumSeed('v2', userHash('u1'))],
      ['field', page, 11, seed],
      ['field', page.subarray(0, -1), 10, seed],
      ['field', Buffer.alloc(0), 10, seed],
    ]
    for (const args of refused) assert.throws(() => openPage(...args), { code: 'KV_CORRUPT' })
  })
})
