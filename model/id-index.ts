import { RankError } from './errors.js'
import { type IdHash, idHash, isUnicode } from './id-hash.js'
import { readOnlyFile } from './mapped-file.js'

// An index of ids, little-endian: header, slots, offsets, ids. Built by export/id-list.ts.
//   header   u32 × 16: MAGIC, VERSION, number of ids, number of slots, bytes of all records; zeros
//   slots    (slots, 2) u32: tag of an id and 1 + where its record begins, or zeros; linear probing from the id's
//            first slot
//   offsets  (ids + 1) u32: where each record begins, and the end
//   records  index of the id (u32), its UTF-8, END
// A look-up so touches two places of memory: a slot and a record.

export const ID_INDEX_MAGIC = 0x58444950
export const ID_INDEX_VERSION = 1
export const HEADER_WORDS = 16
/** Bytes of a record before its id. */
export const INDEX_BYTES = 4
/** Behind an id: no byte of UTF-8. */
export const END = 0xff
/** Slots for each id: at three quarters full a known id is found after 2.5 of them on average. */
export const SLOTS_PER_ID = 4 / 3

/** An id's first slot of `slots`. */
export function firstSlot({ place }: IdHash, slots: number): number {
  return Math.floor((place / 2 ** 32) * slots)
}

/** A vocabulary that is a list of ids, not one JSON array: bundles have its index. */
export function isIdList(file: string): boolean {
  return !file.endsWith('.json')
}

export function indexFileOf(list: string): string {
  return `${list}.index`
}

/** Ids to places 0 .. count-1 and back, over the pages of a file. */
export type IdIndex = {
  readonly count: number
  readonly bytes: number
  /** -1 where the id is not there. */
  indexOf(id: string): number
  /** The same of each id: of thousands in half the time. */
  indicesOf(ids: readonly string[]): Int32Array
  idAt(index: number): string | undefined
}

/**
 * Opens an index, which stays a file.
 * @throws {RankError} CONFIG_INVALID when it is none
 */
export function openIdIndex(path: string): IdIndex {
  const fail = (message: string, cause?: unknown) =>
    new RankError('CONFIG_INVALID', `${path} ${message}`, { cause })
  let file: ArrayBuffer
  try {
    file = readOnlyFile(path)
  } catch (cause) {
    throw fail(`cannot be read: ${cause instanceof Error ? cause.message : String(cause)}`, cause)
  }
  if (file.byteLength < 4 * HEADER_WORDS) {
    throw fail(`must be an index of ids, got ${file.byteLength} bytes`)
  }
  const header = new Uint32Array(file, 0, HEADER_WORDS)
  const [magic, version, count = 0, slotCount = 0, recordBytes = 0] = header
  if (magic !== ID_INDEX_MAGIC || version !== ID_INDEX_VERSION) {
    throw fail('must be an index of ids, and is not')
  }
  const expected = 4 * (HEADER_WORDS + 2 * slotCount + count + 1) + recordBytes
  if (file.byteLength !== expected || slotCount <= count) {
    throw fail(
      `must have ${expected} bytes for ${count} ids in ${slotCount} slots, got ${file.byteLength}`,
    )
  }
  const slots = new Uint32Array(file, 4 * HEADER_WORDS, 2 * slotCount)
  const offsets = new Uint32Array(file, 4 * (HEADER_WORDS + 2 * slotCount), count + 1)
  const records = new Uint8Array(file, file.byteLength - recordBytes, recordBytes)

  const isRecordOf = (start: number, { bytes, length }: IdHash): boolean => {
    const id = start + INDEX_BYTES
    for (let i = 0; i < length; i++) if (records[id + i] !== bytes[i]) return false
    return records[id + length] === END
  }
  const indexAt = (start: number): number =>
    ((records[start] ?? 0) |
      ((records[start + 1] ?? 0) << 8) |
      ((records[start + 2] ?? 0) << 16) |
      ((records[start + 3] ?? 0) << 24)) >>>
    0

  const indexOf = (id: string): number => {
    const hash = idHash(id)
    let slot = firstSlot(hash, slotCount)
    // A file that somebody else made may have no empty slot.
    for (let tried = 0; tried < slotCount; tried++) {
      const next = slots[2 * slot + 1] ?? 0
      if (next === 0) return -1
      if (slots[2 * slot] === hash.tag && isRecordOf(next - 1, hash)) {
        return isUnicode(id) ? indexAt(next - 1) : -1
      }
      if (++slot === slotCount) slot = 0
    }
    return -1
  }

  /** The record is that of this id, which is ASCII; of no other id is it ever said. */
  const isAsciiRecordOf = (start: number, id: string): boolean => {
    const text = start + INDEX_BYTES
    for (let i = 0; i < id.length; i++) {
      const code = id.charCodeAt(i)
      if (code >= 128 || records[text + i] !== code) return false
    }
    return records[text + id.length] === END
  }

  /**
   * 1 + where the record of each id begins if its tag is no other's; 0 where it is not there; UNDECIDED where the search
   * goes on at the first slot. Look-ups one after the other wait
   * for memory twice each, 0.3 us a time; loops that do nothing but read, and decide nothing by it, wait for many at once.
   */
  const likelyRecords = (ids: readonly string[]): Uint32Array => {
    const places = new Uint32Array(ids.length)
    const tags = new Uint32Array(ids.length)
    for (let i = 0; i < ids.length; i++) {
      const hash = idHash(ids[i] ?? '')
      places[i] = firstSlot(hash, slotCount)
      tags[i] = hash.tag
    }
    let read = 0
    for (let i = 0; i < places.length; i++) read ^= slots[2 * (places[i] ?? 0)] ?? 0
    for (let i = 0; i < places.length; i++) {
      let slot = places[i] ?? 0
      while (slot < slotCount && slots[2 * slot + 1] !== 0 && slots[2 * slot] !== tags[i]) slot++
      places[i] = slots[2 * slot + 1] ?? UNDECIDED
    }
    for (let i = 0; i < places.length; i++) read ^= records[places[i] ?? 0] ?? 0
    touched[0] = read
    return places
  }

  return {
    count,
    bytes: file.byteLength,
    indexOf,
    indicesOf(ids) {
      const found = likelyRecords(ids)
      const indices = new Int32Array(ids.length)
      for (let i = 0; i < ids.length; i++) {
        const id = ids[i] ?? ''
        const start = (found[i] ?? 0) - 1
        if (start < 0) indices[i] = -1
        else indices[i] = isAsciiRecordOf(start, id) ? indexAt(start) : indexOf(id)
      }
      return indices
    },
    idAt(index) {
      const start = offsets[index]
      const end = offsets[index + 1]
      if (start === undefined || end === undefined) return undefined
      return decoder.decode(records.subarray(start + INDEX_BYTES, end - 1))
    },
  }
}

/** Behind every record. */
const UNDECIDED = 2 ** 32 - 1

/** What was read in advance goes here: what nobody keeps need not be read. */
const touched = new Int32Array(1)

/** An id may begin with U+FEFF. */
const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
