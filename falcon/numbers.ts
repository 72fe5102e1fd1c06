import { RankError } from '../model/errors.js'

/** Milliseconds to the microsecond: what a clock can say. */
export function micros(ms: number): number {
  return Math.round(ms * 1000) / 1000
}

/** A NaN would sort anywhere and read as null in JSON. @throws {RankError} MODEL_CONTRACT */
export function checkFinite(logits: Float32Array, precision: string): void {
  for (const logit of logits) {
    if (Number.isFinite(logit)) continue
    throw new RankError(
      'MODEL_CONTRACT',
      `logits must be finite, got ${logit}: the ${precision} model overflows on this request`,
    )
  }
}
