/**
 * float32 values, or the bytes of some, as bfloat16, rounded to nearest even; NaN stays NaN. To bytes: there is no
 * array of bfloat16.
 */
export function toBf16(float32: ArrayBufferView): Uint8Array {
  const values = wordsOf(float32, Uint32Array)
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

/** What lies there as integers, copied where it is not aligned. */
function wordsOf(view: ArrayBufferView, Type: typeof Uint16Array | typeof Uint32Array) {
  const isAligned = view.byteOffset % Type.BYTES_PER_ELEMENT === 0
  const { buffer, byteOffset, byteLength } = isAligned
    ? view
    : new Uint8Array(view.buffer, view.byteOffset, view.byteLength).slice()
  const length = byteLength / Type.BYTES_PER_ELEMENT
  return Type === Uint16Array
    ? new Uint16Array(buffer, byteOffset, length)
    : new Uint32Array(buffer, byteOffset, length)
}
