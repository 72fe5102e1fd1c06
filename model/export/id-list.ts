import { isUtf8 } from 'node:buffer'
import { closeSync, fstatSync, openSync, readSync, statSync, writeSync } from 'node:fs'
import { show } from '../check.js'
import { RankError } from '../errors.js'
import { idHash, isUnicode } from '../id-hash.js'
import {
  END,
  firstSlot,
  HEADER_WORDS,
  ID_INDEX_MAGIC,
  ID_INDEX_VERSION,
  INDEX_BYTES,
  SLOTS_PER_ID,
} from '../id-index.js'

/** Offsets are 32-bit. */
const MOST_BYTES = 2 ** 32 - 2
const CHUNK_BYTES = 2 ** 20
const LINE_FEED = 10
const CARRIAGE_RETURN = 13

/** Only a file's first three bytes are a byte order mark; elsewhere they are an id's. */
const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
const BYTE_ORDER_MARK = '\ufeff'

export type OnRead = (name: string, done: number, total: number) => void

/**
 * Writes the index of a list of ids, one a line, a JSON string or number each where the file's name ends in
 * `.ndjson`: the id on line i is index i - 1. Memory: the ids themselves and 20 bytes for each.
 * @throws {RankError} CONFIG_INVALID naming the line that is empty, no id, or there twice
 */
export function writeIdIndex(
  list: string,
  index: string,
  expected: number,
  onRead: OnRead = () => {},
): void {
  const fail = (message: string) => new RankError('CONFIG_INVALID', `${list} ${message}`)
  const fd = open(list)
  try {
    const size = fstatSync(fd).size
    // An id is never longer than its line, whose end is the record's; the last line may have none.
    const room = size + 1 + expected * INDEX_BYTES
    if (room > MOST_BYTES) {
      throw fail(`must have at most ${MOST_BYTES - expected * INDEX_BYTES} bytes, got ${size}`)
    }
    const slotCount = Math.ceil(expected * SLOTS_PER_ID) + 1
    const slots = new Uint32Array(2 * slotCount)
    const offsets = new Uint32Array(expected + 1)
    const records = new Uint8Array(room)
    const view = new DataView(records.buffer)
    const isJson = list.endsWith('.ndjson')
    let count = 0
    let end = 0

    const add = (line: Uint8Array) => {
      if (!isUtf8(line)) throw fail(`line ${count + 1} must be UTF-8`)
      const whole = decoder.decode(line)
      const text = count === 0 && whole.startsWith(BYTE_ORDER_MARK) ? whole.slice(1) : whole
      const id = isJson ? jsonId(text, count + 1, fail) : text
      if (id === '') throw fail(`line ${count + 1} must be an id, and is empty`)
      if (count === expected) throw fail(`must list ${expected} ids, got more`)
      const hash = idHash(id)
      const { length } = hash
      let slot = firstSlot(hash, slotCount)
      for (let next = slots[2 * slot + 1] ?? 0; next !== 0; next = slots[2 * slot + 1] ?? 0) {
        const other = next - 1 + INDEX_BYTES
        const isSame =
          slots[2 * slot] === hash.tag &&
          records[other + length] === END &&
          hash.bytes.subarray(0, length).every((byte, i) => records[other + i] === byte)
        if (isSame) {
          const line = 1 + view.getUint32(next - 1, true)
          throw fail(`has the id ${show(id)} twice: on lines ${line} and ${count + 1}`)
        }
        if (++slot === slotCount) slot = 0
      }
      slots[2 * slot] = hash.tag
      slots[2 * slot + 1] = end + 1
      view.setUint32(end, count, true)
      records.set(hash.bytes.subarray(0, length), end + INDEX_BYTES)
      end += INDEX_BYTES + length + 1
      records[end - 1] = END
      count++
      offsets[count] = end
    }

    forEachLine(fd, size, add, (done) => onRead(list, done, size))
    if (count !== expected) throw fail(`must list ${expected} ids, got ${count}`)
    const header = Uint32Array.of(ID_INDEX_MAGIC, ID_INDEX_VERSION, count, slotCount, end)
    write(
      index,
      [header, new Uint32Array(HEADER_WORDS - header.length), slots, offsets],
      records,
      end,
    )
  } finally {
    closeSync(fd)
  }
}

function open(list: string): number {
  try {
    if (!statSync(list).isFile()) throw new Error('it is not a file')
    return openSync(list, 'r')
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RankError('CONFIG_INVALID', `cannot read ${list}: ${why}`, { cause })
  }
}

function jsonId(line: string, number: number, fail: (message: string) => RankError): string {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch {
    throw fail(`line ${number} must be a JSON string or number, got ${show(line)}`)
  }
  if (typeof value === 'string') {
    if (isUnicode(value)) return value
    throw fail(`line ${number} must have no half of a surrogate pair, got ${show(value)}`)
  }
  // 1e3 is one too, but another id than 1000 to whoever compares texts.
  if (Number.isSafeInteger(value) && String(value) === line.trim()) return String(value)
  throw fail(`line ${number} must be a JSON string or digits, got ${show(line)}`)
}

/** Lines without their ends, LF or CR LF; a last one without is a line too. */
function forEachLine(
  fd: number,
  size: number,
  line: (bytes: Uint8Array) => void,
  onRead: (done: number) => void,
): void {
  const chunk = Buffer.allocUnsafe(CHUNK_BYTES)
  let rest = Buffer.alloc(0)
  for (let done = 0; done < size; ) {
    const got = readSync(fd, chunk, 0, CHUNK_BYTES, done)
    if (got === 0) break
    done += got
    let start = 0
    for (;;) {
      const end = chunk.subarray(0, got).indexOf(LINE_FEED, start)
      if (end === -1) break
      const own = chunk.subarray(start, end)
      line(withoutReturn(rest.length === 0 ? own : Buffer.concat([rest, own])))
      rest = Buffer.alloc(0)
      start = end + 1
    }
    if (start < got) rest = Buffer.concat([rest, chunk.subarray(start, got)])
    onRead(done)
  }
  if (rest.length > 0) line(withoutReturn(rest))
}

function withoutReturn(line: Buffer): Buffer {
  return line.at(-1) === CARRIAGE_RETURN ? line.subarray(0, -1) : line
}

function write(
  file: string,
  words: readonly Uint32Array[],
  records: Uint8Array,
  end: number,
): void {
  const fd = openSync(file, 'w')
  try {
    for (const part of words) append(fd, new Uint8Array(part.buffer))
    append(fd, records.subarray(0, end))
  } finally {
    closeSync(fd)
  }
}

function append(fd: number, bytes: Uint8Array): void {
  // Linux writes at most 2 GiB at a time.
  for (let done = 0; done < bytes.length; ) {
    done += writeSync(fd, bytes, done, Math.min(bytes.length - done, 2 ** 30))
  }
}
