import type { HstuConfig } from '../config.js'
import { RankError } from '../errors.js'
import { type KvPrecision, planeBytes } from './codec/graphs.js'
import type { EncodedKv, KvPages } from './engine.js'

/** Bytes of one element of K/V. */
export const KV_ELEMENT_BYTES: Readonly<Record<KvPrecision, number>> = { fp32: 4, fp16: 2, bf16: 2 }

/** Rows are reserved in such steps, so that most appends find room, in tokens. */
const GROWTH_TOKENS = 64

/** Rows to reserve for `tokens` and what is appended to them, up to the longest history. */
export function capacityFor(tokens: number, maxTokens: number): number {
  const rounded = Math.ceil(tokens / GROWTH_TOKENS) * GROWTH_TOKENS
  return Math.max(tokens, Math.min(rounded, maxTokens))
}

/** What one token's K/V consists of. */
export type KvShape = {
  readonly layers: number
  /** Elements of one token's K and of its V, per layer. */
  readonly kWidth: number
  readonly vWidth: number
}

export function kvShape({ layers, heads, dqk, dv }: HstuConfig): KvShape {
  return { layers, kWidth: heads * dqk, vWidth: heads * dv }
}

/** Widths of the arrays in their order, in elements: K and V of layer 0, then of layer 1, … */
export function arrayWidths({ layers, kWidth, vWidth }: KvShape): number[] {
  return Array.from({ length: layers }, () => [kWidth, vWidth]).flat()
}

/**
 * What `importKv` is given, as planes: rows in the engine's precision are planes of that codec.
 * @throws {RankError} KV_CORRUPT when they are not of this model's shape
 */
export function checkedKv(
  kv: KvPages | EncodedKv,
  config: HstuConfig,
  precision: KvPrecision,
): EncodedKv {
  const { tokens, times } = kv
  const { codec, planes } =
    'planes' in kv ? kv : { codec: precision, planes: kv.layers.flatMap(({ k, v }) => [k, v]) }
  const sizes = planeBytes(codec, arrayWidths(kvShape(config)))
  const fits =
    planes.length === sizes.length &&
    times.length === tokens &&
    planes.every(({ byteLength }, p) => byteLength === tokens * (sizes[p] ?? 0))
  if (fits) return { tokens, times, codec, planes }
  throw new RankError(
    'KV_CORRUPT',
    `expected ${tokens} tokens of ${config.layers} layers in ${codec}, got ${planes.length} planes of other sizes`,
  )
}
