/**
 * float32 values as bfloat16, rounded to nearest even; NaN stays NaN. Bytes to bytes: whoever calls has
 * no tensors of either.
 */
export function toBf16(bytes: Uint8Array): Uint8Array {
  const values = wordsOf(bytes, Uint32Array)
  const rounded = new Uint16Array(values.length)
  for (let i = 0; i < values.length; i++) {
    const x = values[i] ?? 0
    // What is added carries into the exponent, as it should: the next number up. A NaN's would go over its end.
    const isNan = (x & 0x7fff_ffff) > 0x7f80_0000
    rounded[i] = isNan ? (x >>> 16) | 0x40 : (x + 0x7fff + ((x >>> 16) & 1)) >>> 16
  }
  return new Uint8Array(rounded.buffer)
}

/** The way back, which is exact. */
export function fromBf16(bytes: Uint8Array): Uint8Array {
  const values = wordsOf(bytes, Uint16Array)
  const wide = new Uint32Array(values.length)
  for (let i = 0; i < values.length; i++) wide[i] = (values[i] ?? 0) << 16
  return new Uint8Array(wide.buffer)
}

/** The bytes as integers, copied where they are not aligned. (A Buffer's slice is no copy.) */
function wordsOf(bytes: Uint8Array, Type: typeof Uint16Array | typeof Uint32Array) {
  const { buffer, byteOffset, byteLength } =
    bytes.byteOffset % Type.BYTES_PER_ELEMENT === 0 ? bytes : new Uint8Array(bytes)
  const length = byteLength / Type.BYTES_PER_ELEMENT
  return Type === Uint16Array
    ? new Uint16Array(buffer, byteOffset, length)
    : new Uint32Array(buffer, byteOffset, length)
}
