import type { HstuConfig } from '../config.js'
import { RankError } from '../errors.js'
import type { Precision } from '../manifest.js'
import type { KvPages } from './engine.js'

/** Bytes of one element of K/V. */
export const KV_ELEMENT_BYTES: Readonly<Record<Precision, number>> = { fp32: 4, fp16: 2 }

/** Rows are reserved in such steps, so that most appends find room, in tokens. */
const GROWTH_TOKENS = 64

/** Rows to reserve for `tokens` and what is appended to them, up to the longest history. */
export function capacityFor(tokens: number, maxTokens: number): number {
  const rounded = Math.ceil(tokens / GROWTH_TOKENS) * GROWTH_TOKENS
  return Math.max(tokens, Math.min(rounded, maxTokens))
}

/** @throws {RankError} KV_CORRUPT when the pages are not of this model's shape */
export function checkPages(
  { tokens, times, layers }: KvPages,
  config: HstuConfig,
  precision: Precision,
): void {
  const rowBytes = tokens * config.heads * KV_ELEMENT_BYTES[precision]
  const fits =
    layers.length === config.layers &&
    times.length === tokens &&
    layers.every(
      ({ k, v }) => k.byteLength === config.dqk * rowBytes && v.byteLength === config.dv * rowBytes,
    )
  if (fits) return
  throw new RankError('KV_CORRUPT', `pages do not hold ${tokens} tokens of ${config.layers} layers`)
}
