import { randomBytes } from 'node:crypto'
import type { KvCodec } from '../model/engine/codec/codec.js'
import type { KvCodecName } from '../model/engine/codec/graphs.js'
import type { KvLayer } from '../model/engine/engine.js'
import { RankError } from '../model/errors.js'
import { type DigestChain, PAGE_TOKENS } from './digest.js'
import { kvKey, kvVariant, type UserHash, versionsKey } from './key.js'
import { kvScripts, readHead } from './kv-scripts.js'
import {
  checksumSeed,
  corrupt,
  decodeHead,
  encodeHead,
  FORGOTTEN,
  type Head,
  maxHeadBytes,
  openPage,
  type PageShape,
  pageFields,
  pageSeed,
  pageStrings,
  pageTokens,
  sealPage,
} from './page.js'
import type { RedisClient } from './redis.js'
import { arraysIn, type SpareMemory } from './spare-memory.js'

export type RedisKvOptions = {
  /** Calls take turns on them. */
  readonly readers: readonly RedisClient[]
  /** A connection of its own: a user's pages must not stand before somebody's head. */
  readonly writer: RedisClient
  readonly codec: KvCodec
  /** The bundle's. */
  readonly version: string
  readonly shape: PageShape
  readonly appendIsExact: boolean
  readonly ttlMs: number
  /** What fetched planes lie in. */
  readonly memory: SpareMemory
}

/** K/V of the first `tokens` tokens of a history, in the engine's precision. */
export type RemoteRows = { readonly tokens: number; readonly layers: readonly KvLayer[] }

/** K/V of the first `tokens` tokens as tier 2 keeps it: the planes of every layer's K and V, in turn. */
export type FetchedKv = {
  readonly tokens: number
  readonly codec: KvCodecName
  readonly planes: readonly Uint8Array[]
  /**
   * To be called when nobody reads the planes any more: a later fetch then uses their memory. Calls after
   * the first change nothing.
   */
  done(): void
}

/** `conflict`: another writer was faster, nothing changed; `lost`: pages were missing, all are gone now. */
export type WriteOutcome = 'written' | 'conflict' | 'lost'

/** Tier 2: what Redis keeps of users' K/V. `user` is the hash of an id. Everything may reject. */
export type RedisKv = {
  /**
   * Undefined where nothing is; of a forgotten user one of no tokens, which a writer must know.
   * @throws {RankError} KV_CORRUPT: the entry is of no use and was deleted
   */
  head(user: UserHash, signal?: AbortSignal): Promise<Head | undefined>
  /**
   * K/V of the history's first tokens, as many pages as there are; `head` says which. It is what was
   * written, checked but not decoded.
   * @throws {RankError} KV_CORRUPT, as above
   */
  fetch(user: UserHash, head: Head, tokens: number, signal?: AbortSignal): Promise<FetchedKv>
  /** Tokens [start, chain.tokens) are in `rows`; those before are in the entry of `previous`. */
  write(
    user: UserHash,
    chain: DigestChain,
    previous: Head | undefined,
    rows: RemoteRows,
  ): Promise<WriteOutcome>
  /** Deletes the user's K/V of every model and codec; a write that began before will find a conflict. */
  forget(user: UserHash): Promise<void>
  close(): Promise<void>
}

const NOTHING = new Uint8Array(0)
/** Reads on their way for one fetch: one is on the wire while another is checked. */
export const IN_FLIGHT = 2
/** How long a forgotten user's mark outlives the writes that began before it. */
const FORGOTTEN_MS = 60_000
/** Share of the time to live that is random, so that what was written together does not go together. */
const JITTER = 0.1

export function createRedisKv(options: RedisKvOptions): RedisKv {
  const { readers, writer, codec, version, shape, appendIsExact, ttlMs, memory } = options
  const variant = kvVariant(version, codec.name)
  const tokenBytes = sum(codec.planeBytes)
  const { perReply: pagesPerChunk } = pageStrings(codec.planeBytes)
  const scripts = kvScripts(writer)
  let turn = 0
  const nextReader = () => {
    turn = (turn + 1) % readers.length
    return readers[turn] ?? writer
  }

  /**
   * Deletes what is corrupt, unless somebody has written it anew. Where that is not allowed it stays,
   * and is found corrupt again.
   */
  const discard = (user: UserHash, raw: Uint8Array) =>
    scripts.discard(kvKey(variant, user), raw).catch(() => {})

  /** Keys and time to live of what is written or renewed now. */
  const entryOf = (user: UserHash) => ({
    key: kvKey(variant, user),
    versions: versionsKey(user),
    ttlMs: Math.round(ttlMs * (1 + JITTER * Math.random())),
    variant,
  })

  /** Runs `read`; what it finds corrupt is deleted. `raw` is the head, empty where none was read. */
  const orDelete = async <T>(user: UserHash, raw: Uint8Array, read: () => T | Promise<T>) => {
    try {
      return await read()
    } catch (error) {
      const fault = isWrongType(error) ? new RankError('KV_CORRUPT', error.message) : error
      if (fault instanceof RankError && fault.code === 'KV_CORRUPT') await discard(user, raw)
      throw fault
    }
  }

  /** The rows' pages from `firstPage` on, as they go to Redis. */
  const encode = async (chain: DigestChain, firstPage: number, rows: RemoteRows, seed: number) => {
    const encoded = await codec.encode(rows.layers.flatMap(({ k, v }) => [k, v]))
    return pageFields(chain, appendIsExact)
      .slice(firstPage)
      .map((field, i): [field: string, page: Buffer] => {
        const from = i * PAGE_TOKENS
        const to = from + pageTokens(chain, firstPage + i)
        const parts = encoded.map((plane, p) => {
          const bytes = codec.planeBytes[p] ?? 0
          return plane.subarray(from * bytes, to * bytes)
        })
        return [field, sealPage(field, parts, seed)]
      })
  }

  return {
    async head(user, signal) {
      signal?.throwIfAborted()
      const found = await orDelete(user, NOTHING, () =>
        readHead(nextReader(), kvKey(variant, user), maxHeadBytes(shape)),
      )
      if (found === undefined) return undefined
      if (typeof found === 'number') {
        throw corrupt(`a head of at most ${maxHeadBytes(shape)} bytes, got ${found}`)
      }
      const { raw, leftMs } = found
      const head = await orDelete(user, raw, () =>
        decodeHead(raw, shape, checksumSeed(version, user)),
      )
      return { ...head, leftMs }
    },

    async fetch(user, head, tokens, signal) {
      const key = kvKey(variant, user)
      const seed = pageSeed(shape, checksumSeed(version, user))
      const fields = pageFields(head.chain, appendIsExact).slice(0, Math.ceil(tokens / PAGE_TOKENS))
      const { buffer, arrays: planes } = arraysIn(
        memory,
        codec.planeBytes.map((bytes) => tokens * bytes),
      )
      let isLent = true
      const done = () => {
        if (isLent) memory.give(buffer)
        isLent = false
      }
      let found = 0
      const place = (page: Buffer | null | undefined, i: number): boolean => {
        const field = fields[i]
        if (page === null || page === undefined || field === undefined) return false
        const count = Math.min(pageTokens(head.chain, i), tokens - i * PAGE_TOKENS)
        const rows = openPage(field, page, count * tokenBytes, seed)
        let at = 0
        for (const [p, bytes] of codec.planeBytes.entries()) {
          planes[p]?.set(rows.subarray(at, at + count * bytes), found * bytes)
          at += count * bytes
        }
        found += count
        return true
      }
      const chunks = chunksOf(fields, pagesPerChunk)
      const reader = nextReader()
      const read = (chunk: readonly string[]) => {
        signal?.throwIfAborted()
        const pages = reader.hmgetBuffer(key, ...chunk)
        // Of those on their way when one fails nobody asks any more.
        pages.catch(() => {})
        return pages
      }
      const reads = chunks.slice(0, IN_FLIGHT).map(read)
      try {
        await orDelete(user, head.raw, async () => {
          for (const [c, chunk] of chunks.entries()) {
            // Out of the queue: pages that are let go of at once are garbage that costs V8 next to nothing.
            const pages = await reads.shift()
            const next = chunks[c + IN_FLIGHT]
            if (next !== undefined) reads.push(read(next))
            if (chunk.every((_, i) => place(pages?.[i], c * pagesPerChunk + i))) continue
            // Another writer's head holds a newer history; or a page got lost, and would stay so.
            return discard(user, head.raw)
          }
        })
      } catch (error) {
        done()
        throw error
      }
      const kept = found === tokens || appendIsExact ? found : 0
      if (kept > 0 && head.leftMs < ttlMs / 2) {
        // Nobody waits for it, and whom it fails finds the entry for as long as it was.
        scripts.renew({ ...entryOf(user), head: head.raw }).catch(() => {})
      }
      const first = planes.map((plane, p) => plane.subarray(0, kept * (codec.planeBytes[p] ?? 0)))
      return { tokens: kept, codec: codec.name, planes: first, done }
    },

    async write(user, chain, previous, rows) {
      const entry = entryOf(user)
      const seed = checksumSeed(version, user)
      const firstPage = (chain.tokens - rows.tokens) / PAGE_TOKENS
      for (const pages of chunksOf(
        await encode(chain, firstPage, rows, pageSeed(shape, seed)),
        pagesPerChunk,
      )) {
        await scripts.stage(entry.key, entry.ttlMs, pages)
      }
      const head = encodeHead(shape, chain, randomBytes(16), seed)
      return scripts.commit({
        ...entry,
        previous: previous?.raw ?? NOTHING,
        head,
        fields: pageFields(chain, appendIsExact),
      })
    },

    async forget(user) {
      const others = await writer.smembers(versionsKey(user))
      for (const one of new Set([variant, ...others])) {
        const mark = Buffer.concat([FORGOTTEN, randomBytes(16)])
        await scripts.forget(kvKey(one, user), mark, FORGOTTEN_MS)
      }
    },

    async close() {
      await codec.close()
      for (const client of [...readers, writer]) client.disconnect()
    },
  }
}

/**
 * The first token that a write of `chain` must bring, a multiple of a page; undefined when the entry
 * already has all of it, or a longer history that begins with it.
 */
export function writeStart(
  previous: Head | undefined,
  chain: DigestChain,
  appendIsExact: boolean,
): number | undefined {
  if (previous === undefined) return 0
  if (previous.chain.whole === chain.whole) return undefined
  const there = pageFields(previous.chain, appendIsExact)
  const fields = pageFields(chain, appendIsExact)
  const common = fields.findIndex((field, i) => field !== there[i])
  // As far as whole pages tell: without one nothing does, and an unrelated entry must not stay for ever.
  const isBehind =
    previous.chain.tokens > chain.tokens &&
    chain.pages.length > 0 &&
    (common < 0 || common === chain.pages.length)
  if (appendIsExact && isBehind) return undefined
  return (common < 0 ? fields.length : common) * PAGE_TOKENS
}

/** Something that is no hash lies where the entry should be. */
function isWrongType(error: unknown): error is Error {
  // Before Redis 7 a script's error says first that it is one.
  return error instanceof Error && error.message.includes('WRONGTYPE')
}

function chunksOf<T>(items: readonly T[], size: number): T[][] {
  const count = Math.ceil(items.length / size)
  return Array.from({ length: count }, (_, i) => items.slice(i * size, (i + 1) * size))
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0)
}
