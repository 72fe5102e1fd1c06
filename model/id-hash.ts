/** Two hashes of an id, and its UTF-8 bytes, which are overwritten by the next call. */
export type IdHash = {
  readonly bytes: Uint8Array
  readonly length: number
  /** Where it is looked for: 32 bits, evenly spread. */
  place: number
  /** What tells it from most others there: 32 bits that do not follow from `place`. */
  tag: number
}

const FNV_BASIS = 0x811c9dc5
const FNV_PRIME = 0x01000193
const OTHER_BASIS = 0x9e3779b1
const OTHER_PRIME = 0x85ebca77

let bytes = new Uint8Array(256)
const encoder = new TextEncoder()
const hash = { bytes, length: 0, place: 0, tag: 0 }

/**
 * Place: 32-bit FNV-1a; tag: the same with another basis and factor; each through MurmurHash3's finalizer.
 * A request looks up thousands of ids, so that the one result is used again and again.
 */
export function idHash(id: string): IdHash {
  const length = encode(id)
  const own = bytes
  let place = FNV_BASIS
  let tag = OTHER_BASIS
  for (let i = 0; i < length; i++) {
    const byte = own[i] ?? 0
    place = Math.imul(place ^ byte, FNV_PRIME)
    tag = Math.imul(tag ^ byte, OTHER_PRIME)
  }
  hash.length = length
  hash.place = mixed(place)
  hash.tag = mixed(tag)
  return hash
}

/** UTF-8 into `bytes`: ids are mostly ASCII and short, and TextEncoder takes longer than all the rest. */
function encode(id: string): number {
  const { length } = id
  if (3 * length > bytes.length) {
    bytes = new Uint8Array(6 * length)
    hash.bytes = bytes
  }
  for (let i = 0; i < length; i++) {
    const code = id.charCodeAt(i)
    if (code >= 128) return encoder.encodeInto(id, bytes).written
    bytes[i] = code
  }
  return length
}

/** Half of a surrogate pair has no UTF-8: its bytes, and so its hashes, are those of U+FFFD. */
export function isUnicode(id: string): boolean {
  return !/\p{Surrogate}/u.test(id)
}

/** The finalizer of 32-bit MurmurHash3. @see Austin Appleby's MurmurHash3 (public domain) */
function mixed(value: number): number {
  let h = value
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}
