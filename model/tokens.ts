/**
 * A stretch of history tokens, oldest first, ready for the graphs.
 * `slots` is the number of embedding rows a token may sum (the manifest's).
 */
export type HistoryTokens = {
  /** (length, slots) rows of the bundle's embedding table, row-major; 0 = the zero row. */
  readonly rows: Int32Array
  /** (length) action masks: bit a = action type a; bit `actions.length` = "is an action token"; 0 elsewhere. */
  readonly actions: Int32Array
  /** (length) whole seconds since the epoch. */
  readonly times: Float64Array
  readonly length: number
}

/** Tokens [start, end) of `tokens`, as views of the same memory. */
export function sliceTokens(tokens: HistoryTokens, start: number, end: number): HistoryTokens {
  const slots = tokens.length === 0 ? 0 : tokens.rows.length / tokens.length
  return {
    rows: tokens.rows.subarray(start * slots, end * slots),
    actions: tokens.actions.subarray(start, end),
    times: tokens.times.subarray(start, end),
    length: end - start,
  }
}

/** Tokens of nothing but zeros: for running shapes, not for answers. */
export function zeroTokens(length: number, slots: number): HistoryTokens {
  return {
    rows: new Int32Array(length * slots),
    actions: new Int32Array(length),
    times: new Float64Array(length),
    length,
  }
}

const TWO_TO_32 = 2 ** 32

/**
 * Writes `times` (whole seconds) into the int64 values that the graphs take, from index `at` on.
 * By halves, little-endian: a BigInt for each of 2,048 times takes 54 us of a miss on the event loop, halves of any
 * number 14, and 5 where numbers below 2^31 are not divided.
 * @throws {RangeError} where a time is no whole number below 2^53, or `out` is too short
 */
export function writeTimes(out: BigInt64Array, times: Float64Array, at = 0): void {
  if (at + times.length > out.length) {
    throw new RangeError(`expected room for ${times.length} times at ${at}, got ${out.length}`)
  }
  const halves = new Int32Array(out.buffer, out.byteOffset + 8 * at, 2 * times.length)
  for (let i = 0; i < times.length; i++) {
    const time = times[i] ?? 0
    const low = time | 0
    if (low === time && low >= 0) {
      halves[2 * i] = low
      halves[2 * i + 1] = 0
      continue
    }
    if (!Number.isSafeInteger(time)) throw new RangeError(`expected whole seconds, got ${time}`)
    halves[2 * i] = time
    halves[2 * i + 1] = Math.floor(time / TWO_TO_32)
  }
}
