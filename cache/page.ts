import { crc32 } from 'node:zlib'
import { KV_CODECS, type KvCodecName } from '../model/engine/codec/graphs.js'
import type { KvShape } from '../model/engine/kv-shape.js'
import { RankError } from '../model/errors.js'
import { type DigestChain, PAGE_TOKENS } from './digest.js'
import type { UserHash } from './key.js'
import type { LongStrings } from './redis-receiver.js'

/**
 * What tier 2 keeps of one user's K/V: one head, and a page per 64 tokens.
 *
 *     head   magic 4 · token 16 · codec 4 · layers 4 · kWidth 4 · vWidth 4 · tokens 4
 *            · digest of each full page 32 … · digest of all tokens 32 · crc32 4
 *     page   per layer: rows of K, rows of V, each plane of the codec for itself · crc32 4
 *
 * Rows come first, so that they begin where a word does: V8 copies to shared memory by words, or else
 * byte by byte. Integers are little-endian. A page's field is named after the digest of all tokens up to its end, so
 * that its K/V can be found for no other history, and every checksum begins with the model's version
 * and the user's hash, a page's also with its codec and its field, so that bytes moved elsewhere are
 * corrupt there.
 */
export type PageShape = KvShape & {
  readonly codec: KvCodecName
  /** Of the model's longest history: a head that claims more is corrupt, whatever its checksum. */
  readonly maxTokens: number
}

export type Head = {
  readonly chain: DigestChain
  /** The bytes as they lie in Redis: what a writer must still find there. */
  readonly raw: Uint8Array
  /** Time that the entry still had to live when it was read, in milliseconds. */
  readonly leftMs: number
}

const MAGIC = Buffer.from('PKV2')
/** In place of MAGIC where a user was forgotten: no K/V, but a writer that began before finds a change. */
export const FORGOTTEN = Buffer.from('PKVX')
const TOKEN_BYTES = 16
const FIXED_BYTES = MAGIC.length + TOKEN_BYTES + 5 * 4
const DIGEST_BYTES = 32
const CRC_BYTES = 4
/** A command's values at most: another user's command waits that long, about half a millisecond. */
const CHUNK_BYTES = 2 ** 19

/** First value of every checksum of one user's entry under one model. */
export function checksumSeed(version: string, user: UserHash): number {
  return crc32(`${version} ${user}`)
}

/** Of the user's pages: those of two codecs may have the same field and the same length. */
export function pageSeed({ codec }: PageShape, seed: number): number {
  return crc32(codec, seed)
}

/**
 * Fields of a chain's pages, in order; the last page may be shorter than the others. Where tokens that
 * follow change the K/V of those before them, a page belongs to one whole history.
 */
export function pageFields(chain: DigestChain, appendIsExact: boolean): readonly string[] {
  const tail = chain.tokens % PAGE_TOKENS === 0 ? [] : [chain.whole]
  const fields = [...chain.pages, ...tail]
  return appendIsExact ? fields : fields.map((field) => `${chain.whole} ${field}`)
}

export function pageTokens(chain: DigestChain, page: number): number {
  return Math.min(PAGE_TOKENS, chain.tokens - page * PAGE_TOKENS)
}

/** `token`: 16 random bytes, so that no two heads are equal. */
export function encodeHead(
  shape: PageShape,
  chain: DigestChain,
  token: Uint8Array,
  seed: number,
): Buffer {
  const digests = [...chain.pages, chain.whole].map((digest) => Buffer.from(digest, 'base64'))
  const numbers = Buffer.alloc(5 * 4)
  const { codec, layers, kWidth, vWidth } = shape
  const values = [KV_CODECS.indexOf(codec), layers, kWidth, vWidth, chain.tokens]
  values.forEach((value, i) => {
    numbers.writeUInt32LE(value, 4 * i)
  })
  return withChecksum(
    Buffer.concat([MAGIC, token.subarray(0, TOKEN_BYTES), numbers, ...digests]),
    seed,
  )
}

/**
 * The head in these bytes; where the user was forgotten, one of no tokens.
 * @throws {RankError} KV_CORRUPT unless they are exactly one head of this shape, user and model
 */
export function decodeHead(raw: Buffer, shape: PageShape, seed: number): Omit<Head, 'leftMs'> {
  if (raw.subarray(0, FORGOTTEN.length).equals(FORGOTTEN)) {
    return { chain: { tokens: 0, pages: [], whole: '' }, raw: new Uint8Array(raw) }
  }
  if (raw.length < FIXED_BYTES + DIGEST_BYTES + CRC_BYTES || !raw.subarray(0, 4).equals(MAGIC)) {
    throw corrupt(`a head begins with PKV2, got ${raw.length} bytes of something else`)
  }
  const body = raw.subarray(0, -CRC_BYTES)
  if (raw.readUInt32LE(body.length) !== crc32(body, seed)) throw corrupt('checksum of a head')
  const number = (i: number) => raw.readUInt32LE(MAGIC.length + TOKEN_BYTES + 4 * i)
  const [codec, layers, kWidth, vWidth, tokens] = [
    number(0),
    number(1),
    number(2),
    number(3),
    number(4),
  ]
  const got = `${KV_CODECS[codec]} ${layers}x(${kWidth}+${vWidth})`
  const expected = `${shape.codec} ${shape.layers}x(${shape.kWidth}+${shape.vWidth})`
  if (got !== expected) throw corrupt(`expected K/V of ${expected}, got ${got}`)
  const full = Math.floor(tokens / PAGE_TOKENS)
  if (tokens > shape.maxTokens || body.length !== headBytes(tokens)) {
    throw corrupt(`a head of ${tokens} tokens in ${raw.length} bytes`)
  }
  const digest = (i: number) =>
    body.subarray(FIXED_BYTES + i * DIGEST_BYTES).toString('base64', 0, DIGEST_BYTES)
  const pages = Array.from({ length: full }, (_, i) => digest(i))
  // Copied: a reply is a piece of the connection's pool.
  return { chain: { tokens, pages, whole: digest(full) }, raw: new Uint8Array(raw) }
}

/** Of the longest head. */
export function maxHeadBytes({ maxTokens }: PageShape): number {
  return headBytes(maxTokens) + CRC_BYTES
}

/** Without the checksum. */
function headBytes(tokens: number): number {
  return FIXED_BYTES + (Math.floor(tokens / PAGE_TOKENS) + 1) * DIGEST_BYTES
}

/** Full pages as strings of a reply, as many as one command asks for; by the bytes of a row of each plane. */
export function pageStrings(planeBytes: readonly number[]): LongStrings {
  const bytes = PAGE_TOKENS * planeBytes.reduce((sum, plane) => sum + plane, 0) + CRC_BYTES
  return { bytes, perReply: Math.max(1, Math.floor(CHUNK_BYTES / bytes)) }
}

/** One page as it lies in Redis; `parts` follow one another. */
export function sealPage(field: string, parts: readonly Uint8Array[], seed: number): Buffer {
  const page = Buffer.concat([...parts, Buffer.alloc(CRC_BYTES)])
  const bytes = page.length - CRC_BYTES
  page.writeUInt32LE(crc32(page.subarray(0, bytes), crc32(field, seed)), bytes)
  return page
}

/**
 * The rows in a page's bytes, as a view.
 * @throws {RankError} KV_CORRUPT
 */
export function openPage(field: string, page: Buffer, bytes: number, seed: number): Buffer {
  if (page.length !== CRC_BYTES + bytes) {
    throw corrupt(`a page of ${CRC_BYTES + bytes} bytes, got ${page.length}`)
  }
  const rows = page.subarray(0, bytes)
  if (page.readUInt32LE(bytes) !== crc32(rows, crc32(field, seed))) {
    throw corrupt('checksum of a page')
  }
  return rows
}

function withChecksum(body: Buffer, seed: number): Buffer {
  const crc = Buffer.alloc(CRC_BYTES)
  crc.writeUInt32LE(crc32(body, seed))
  return Buffer.concat([body, crc])
}

export function corrupt(what: string): RankError {
  return new RankError('KV_CORRUPT', `K/V in Redis: ${what}`)
}
