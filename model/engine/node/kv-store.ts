import type { HstuConfig } from '../../config.js'
import { RankError } from '../../errors.js'
import type { Precision } from '../../manifest.js'
import { writeTimes } from '../../tokens.js'
import type { EncodedKv, KvPages } from '../engine.js'
import { arrayWidths, capacityFor, kvShape } from '../kv-shape.js'

/** Elements of K/V: float32, or the bits of float16. */
export type KvArray = Float32Array<ArrayBuffer> | Uint16Array<ArrayBuffer>

type Block = {
  readonly capacity: number
  /** Rows [0, used) are written; only the handle that ends at `used` may write behind them. */
  used: number
  readonly times: BigInt64Array<ArrayBuffer>
  readonly k: readonly KvArray[]
  readonly v: readonly KvArray[]
}

/** Rows [0, tokens) of a block. Several entries may view one block: a prefix never changes. */
export type KvEntry = { readonly block: Block; readonly tokens: number }

/**
 * The K/V of one worker, token-major per layer. An append writes in place where the past ends at
 * the block's end and there is room, and copies the past otherwise, as slices do in Go.
 */
export class KvStore {
  readonly #entries = new Map<number, KvEntry>()
  readonly #config: HstuConfig
  readonly #precision: Precision

  constructor(config: HstuConfig, precision: Precision) {
    this.#config = config
    this.#precision = precision
  }

  get(handle: number): KvEntry {
    const entry = this.#entries.get(handle)
    if (entry === undefined) throw new RankError('INTERNAL', `K/V handle ${handle} was released`)
    return entry
  }

  release(handle: number): void {
    this.#entries.delete(handle)
  }

  /**
   * A new entry of `tokens` rows that begins with the first `pastTokens` rows of `past`. Rows behind
   * the past are the caller's to write. Gives the bytes that the block holds.
   */
  extend(
    handle: number,
    tokens: number,
    past?: { handle: number; tokens: number },
  ): { entry: KvEntry; bytes: number } {
    const from = past === undefined ? undefined : this.get(past.handle)
    const kept = past?.tokens ?? 0
    if (from !== undefined && kept > from.tokens) {
      throw new RankError('INTERNAL', `past has ${from.tokens} tokens, asked for ${kept}`)
    }
    const block = this.#blockFor(tokens, kept, from)
    block.used = Math.max(block.used, tokens)
    const entry = { block, tokens }
    this.#entries.set(handle, entry)
    return { entry, bytes: bytesOf(block) }
  }

  #blockFor(tokens: number, kept: number, from: KvEntry | undefined): Block {
    if (from !== undefined) {
      const isView = tokens === kept
      const hasRoom = from.block.used === kept && tokens <= from.block.capacity
      if (isView || hasRoom) return from.block
    }
    const block = this.#allocate(tokens)
    if (from !== undefined) {
      const { heads, dqk, dv } = this.#config
      block.times.set(from.block.times.subarray(0, kept))
      block.k.forEach((k, i) => {
        copyRows(k, from.block.k[i], kept * heads * dqk)
      })
      block.v.forEach((v, i) => {
        copyRows(v, from.block.v[i], kept * heads * dv)
      })
    }
    return block
  }

  #allocate(tokens: number): Block {
    const { layers, heads, dqk, dv, maxTokens } = this.#config
    const capacity = capacityFor(tokens, maxTokens)
    const array = (width: number): KvArray =>
      this.#precision === 'fp16'
        ? new Uint16Array(capacity * width)
        : new Float32Array(capacity * width)
    return {
      capacity,
      used: 0,
      times: new BigInt64Array(capacity),
      k: Array.from({ length: layers }, () => array(heads * dqk)),
      v: Array.from({ length: layers }, () => array(heads * dv)),
    }
  }

  /** Copies of rows [start, tokens). */
  export(handle: number, start: number): KvPages {
    const { block, tokens } = this.get(handle)
    const { heads, dqk, dv } = this.#config
    const bytes = (array: KvArray | undefined, width: number) => {
      const rows = array?.slice(start * width, tokens * width)
      return new Uint8Array(rows?.buffer ?? new ArrayBuffer(0))
    }
    return {
      tokens: Math.max(0, tokens - start),
      times: Float64Array.from(block.times.subarray(start, tokens), Number),
      layers: block.k.map((k, i) => ({
        k: bytes(k, heads * dqk),
        v: bytes(block.v[i], heads * dv),
      })),
    }
  }

  /**
   * A new entry of K/V from outside, of this model's shape. `decode` writes the rows of what is encoded
   * into these arrays. Gives the bytes that the block holds.
   */
  async import(
    handle: number,
    { tokens, times, codec, planes }: EncodedKv,
    decode: (planes: readonly Uint8Array[], arrays: readonly Uint8Array[]) => Promise<void>,
  ): Promise<number> {
    const { entry, bytes } = this.extend(handle, tokens)
    const { block } = entry
    writeTimes(block.times, times)
    const widths = arrayWidths(kvShape(this.#config))
    const arrays = block.k
      .flatMap((k, i) => [k, block.v[i] ?? k])
      .map(({ buffer, BYTES_PER_ELEMENT }, a) => {
        return new Uint8Array(buffer, 0, tokens * (widths[a] ?? 0) * BYTES_PER_ELEMENT)
      })
    try {
      if (codec !== this.#precision) await decode(planes, arrays)
      else for (const [a, rows] of arrays.entries()) rows.set(planes[a] ?? rows)
      return bytes
    } catch (error) {
      this.release(handle)
      throw error
    }
  }
}

function bytesOf(block: Block): number {
  const arrays = [block.times, ...block.k, ...block.v]
  return arrays.reduce((sum, { byteLength }) => sum + byteLength, 0)
}

function copyRows(to: KvArray, from: KvArray | undefined, elements: number): void {
  if (from !== undefined) to.set(from.subarray(0, elements))
}
