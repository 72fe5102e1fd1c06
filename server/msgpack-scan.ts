import { isUtf8 } from 'node:buffer'

/** Arrays and maps inside each other: a batch's features are 6 deep. */
const MAX_DEPTH = 16

/**
 * Refuses what a decoder would only find out at a price: nesting (16 MiB of it took 15 s and 2.3 GB), arrays
 * that say they are longer than the whole, and strings that are not UTF-8, which would become other ids. What is
 * merely malformed is left to the decoder.
 * @throws {RangeError} with what was expected and what was got
 * @see https://github.com/msgpack/msgpack/blob/master/spec.md
 */
export function scanMsgpack(bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  /** Values still to come, by depth. */
  const left = new Float64Array(MAX_DEPTH + 1)
  left[0] = 1
  let depth = 0
  let total = 1
  let at = 0

  /** A length of so many bytes, big-endian; 0 where the bytes end. */
  const read = (size: number): number => {
    const start = at
    at += size
    if (at > bytes.byteLength) return 0
    return size === 1
      ? view.getUint8(start)
      : size === 2
        ? view.getUint16(start)
        : view.getUint32(start)
  }
  const open = (count: number) => {
    total += count
    if (total > bytes.byteLength) {
      throw new RangeError(`${bytes.byteLength} bytes cannot hold ${total} values`)
    }
    depth++
    if (depth > MAX_DEPTH) throw new RangeError(`must be at most ${MAX_DEPTH} deep`)
    left[depth] = count
  }
  const string = (length: number) => {
    const start = at
    at += length
    for (let i = start; i < at; i++) {
      if ((bytes[i] ?? 0) < 0x80) continue
      if (!isUtf8(bytes.subarray(start, at))) throw new RangeError('strings must be UTF-8')
      return
    }
  }

  for (;;) {
    while (left[depth] === 0) {
      if (depth === 0) return
      depth--
    }
    left[depth] = (left[depth] ?? 0) - 1
    const head = bytes[at++]
    if (head === undefined) return
    if (head < 0x80 || head >= 0xe0) continue
    if (head < 0x90) open(2 * (head & 0x0f))
    else if (head < 0xa0) open(head & 0x0f)
    else if (head < 0xc0) string(head & 0x1f)
    else if (head < 0xc4) continue
    else if (head < 0xc7) at += read(1 << (head - 0xc4))
    else if (head < 0xca) at += read(1 << (head - 0xc7)) + 1
    else if (head < 0xcc) at += head === 0xca ? 4 : 8
    else if (head < 0xd4) at += 1 << (head & 0x03)
    else if (head < 0xd9) at += 1 + (1 << (head - 0xd4))
    else if (head < 0xdc) string(read(1 << (head - 0xd9)))
    else if (head < 0xde) open(read(2 << (head - 0xdc)))
    else open(2 * read(2 << (head - 0xde)))
  }
}
