import type { HstuConfig } from '../../config.js'
import { writeTimes } from '../../tokens.js'
import type { KvPrecision } from '../codec/graphs.js'
import type { EncodedKv, KvPages } from '../engine.js'
import { arrayWidths, capacityFor, checkedKv, KV_ELEMENT_BYTES, kvShape } from '../kv-shape.js'
import type { Block, Blocks } from './blocks.js'
import { type KvTiles, TILE_TOKENS, type TileRegion } from './kv-tiles.js'
import type { TensorMemory } from './memory.js'
import type { Ort, Pointer } from './ort.js'
import type { Values } from './sessions.js'
import { align, createTensor, ELEMENT, KV_ELEMENT } from './tensor.js'

/** Rows [0, tokens) of a block. Several entries may view one block: a prefix never changes. */
export type KvEntry = {
  readonly block: Block
  readonly tokens: number
  /** OrtValues of its rows, made at first use. */
  values: Values | undefined
  /** Its handle, and jobs that will use it: released at 0. */
  holders: number
  readonly forget: () => void
}

/** What rows are found by: an entry, or memory as a block lays it out. */
type Rows = {
  readonly block: Pick<Block, 'capacity' | 'address'> & {
    readonly memory: Pick<TensorMemory, 'info'>
  }
}

/** K or V of one layer inside a block: its offset in bytes, and the elements of a row. */
type Region = { readonly offset: number; readonly width: number }

type Parts = {
  readonly ort: Ort
  readonly blocks: Blocks
  /** The process's own, where times lie. */
  readonly host: TensorMemory
  readonly config: HstuConfig
  readonly precision: KvPrecision
  /** Blocks hold tiles instead of rows. */
  readonly tiles?: KvTiles | undefined
}

export type KvStore = ReturnType<typeof createKvStore>

/**
 * K/V, token-major per layer, or head by head as tiles: a block holds K and V of every layer, one
 * region after the other. An append writes in place where the past ends at the block's end and there
 * is room, and copies the past otherwise, as slices do in Go.
 */
export function createKvStore({ ort, blocks, host, config, precision, tiles }: Parts) {
  const { layers, heads, dqk, dv, maxTokens } = config
  const widths = arrayWidths(kvShape(config))
  const elementBytes = KV_ELEMENT_BYTES[precision]
  const elementType = tiles === undefined ? KV_ELEMENT[precision] : ELEMENT.uint16
  const toBlocks = (tokens: number) => Math.ceil(tokens / TILE_TOKENS) * TILE_TOKENS

  /** K and V of layer 0, then of layer 1, …; and their size together. */
  const layout = (capacity: number) => {
    const regions: Region[] = []
    let bytes = 0
    for (const width of widths) {
      regions.push({ offset: bytes, width })
      const rows = tiles === undefined ? capacity : toBlocks(capacity)
      bytes += align(rows * width * elementBytes)
    }
    return { regions, bytes }
  }

  const tileRegions = ({ address, capacity }: Pick<Block, 'address' | 'capacity'>): TileRegion[] =>
    layout(capacity).regions.map(({ offset, width }, r) => ({
      address: address + BigInt(offset),
      isKey: r % 2 === 0,
      heads,
      capacity: toBlocks(capacity),
      width: width / heads,
    }))

  const enter = (block: Block, tokens: number): KvEntry => {
    const forget = () => {
      for (const value of Object.values(entry.values ?? {})) ort.ReleaseValue(value)
      entry.values = undefined
    }
    const entry: KvEntry = { block, tokens, values: undefined, holders: 1, forget }
    block.onMove.add(forget)
    return entry
  }

  const allocate = (tokens: number): Promise<Block> => {
    // An allocation of nothing would have no address.
    const capacity = capacityFor(Math.max(tokens, 1), maxTokens)
    return blocks.allocate(capacity, layout(capacity).bytes)
  }

  /** Blocks of tiles, whole: what lies behind the rows in the last one is nobody's yet. */
  const copyTiles = (to: Block, from: Block, rows: number) => {
    const target = tileRegions(to)
    const copies = tileRegions(from).flatMap((region, r) => {
      const { address: start = 0n, capacity: room = 0 } = target[r] ?? {}
      const tokenBytes = region.width * elementBytes
      const bytes = toBlocks(rows) * tokenBytes
      return Array.from({ length: heads }, (_, head) =>
        to.memory.copy(
          start + BigInt(head * room * tokenBytes),
          region.address + BigInt(head * region.capacity * tokenBytes),
          bytes,
        ),
      )
    })
    return allDone(copies)
  }

  const copyRows = async (to: Block, from: Block, rows: number) => {
    to.times.set(from.times.subarray(0, rows))
    // One copy costs less than one per layer, if little comes along that nobody wants.
    const isWhole = to.capacity === from.capacity && rows > (3 / 4) * to.capacity
    if (isWhole) return to.memory.copy(to.address, from.address, to.bytes)
    if (tiles !== undefined) return copyTiles(to, from, rows)
    const target = layout(to.capacity).regions
    const copies = layout(from.capacity).regions.map(({ offset, width }, r) =>
      to.memory.copy(
        to.address + BigInt(target[r]?.offset ?? 0),
        from.address + BigInt(offset),
        rows * width * elementBytes,
      ),
    )
    await allDone(copies)
  }

  /** Rows of every region from `start` on, in the engine's precision. */
  const writeRows = (block: Block, arrays: readonly Uint8Array[], start = 0) => {
    const { memory, address, capacity } = block
    if (tiles !== undefined) {
      const regions = tileRegions(block)
      return allDone(
        regions.map((region, r) => tiles.write(region, arrays[r] ?? new Uint8Array(0), start)),
      )
    }
    const writes = layout(capacity).regions.map(({ offset, width }, r) => {
      const at = address + BigInt(offset + start * width * elementBytes)
      return memory.write(at, arrays[r] ?? new Uint8Array(0))
    })
    return allDone(writes)
  }

  const release = (entry: KvEntry) => {
    entry.holders--
    if (entry.holders > 0) return
    entry.forget()
    entry.block.onMove.delete(entry.forget)
    blocks.leave(entry.block)
  }

  /**
   * Rows [start, end) of every layer under `<k>i` and `<v>i`, or all tiles: they have no address for a row. The
   * caller releases them.
   */
  const rows = ({ block }: Rows, start: number, end: number, k: string, v: string): Values => {
    const values: { [name: string]: Pointer } = {}
    if (tiles !== undefined) {
      tileRegions(block).forEach(({ address, isKey, capacity, width }, r) => {
        const shape = [heads, capacity, width]
        const value = createTensor(ort, block.memory.info, address, shape, elementType)
        values[`${isKey ? k : v}${r >> 1}`] = value
      })
      return values
    }
    layout(block.capacity).regions.forEach(({ offset, width }, r) => {
      const at = block.address + BigInt(offset + start * width * elementBytes)
      const name = `${r % 2 === 0 ? k : v}${r >> 1}`
      values[name] = createTensor(ort, block.memory.info, at, [end - start, width], elementType)
    })
    return values
  }

  /** Times [0, end) of a block's tokens; the caller releases it. */
  const times = ({ block }: KvEntry, end: number): Pointer =>
    createTensor(ort, host.info, block.times, [end], ELEMENT.int64)

  return {
    /**
     * A new entry of `tokens` rows that begins with the first rows of `past`, whose block must be in a
     * run. Rows behind the past are the caller's to write; its block is in a run until `endRun`.
     */
    async extend(tokens: number, past?: { entry: KvEntry; tokens: number }): Promise<KvEntry> {
      const kept = past?.tokens ?? 0
      if (past !== undefined) {
        const { block } = past.entry
        const isView = tokens === kept
        const hasRoom = block.used === kept && tokens <= block.capacity
        if (isView || hasRoom) {
          block.used = Math.max(block.used, tokens)
          blocks.share(block)
          return enter(block, tokens)
        }
      }
      const entry = enter(await allocate(tokens), tokens)
      entry.block.used = tokens
      if (past === undefined) return entry
      try {
        await copyRows(entry.block, past.entry.block, kept)
        return entry
      } catch (error) {
        blocks.endRun(entry.block)
        release(entry)
        throw error
      }
    },

    /** Keeps the entry until `release` is called once more. */
    hold(entry: KvEntry): void {
      entry.holders++
    },
    release,

    /** Releases an entry whose rows behind `kept` were not written: where nothing followed they are free again. */
    abandon(entry: KvEntry, kept: number): void {
      if (entry.block.used === entry.tokens) entry.block.used = kept
      release(entry)
    },

    rows,
    writeRows,
    times,
    /** Whether `rows` gives tiles: rows from elsewhere then go through `writeRows`. */
    hasTiles: tiles !== undefined,

    /**
     * Where an entry's rows lie, if all regions are alike: K and V of each layer from `address`, `pitch`
     * bytes apart, each with the entry's rows at its beginning.
     */
    grid({ block }: KvEntry): { address: Pointer; pitch: number } | undefined {
      if (dqk !== dv) return undefined
      const { regions } = layout(block.capacity)
      return { address: block.address, pitch: regions[1]?.offset ?? 0 }
    },

    /** k.i, v.i and times of an entry whose block is in a run, as inputs of `score`; the entry keeps them. */
    valuesOf(entry: KvEntry): Values {
      entry.values ??= {
        ...rows(entry, 0, entry.tokens, 'k.', 'v.'),
        times: times(entry, entry.tokens),
      }
      return entry.values
    },

    /** Rows [start, tokens); the entry's block must be in a run. */
    async export({ block, tokens }: KvEntry, start: number): Promise<KvPages> {
      const rows = Math.max(0, tokens - start)
      const reads =
        tiles === undefined
          ? layout(block.capacity).regions.map(({ offset, width }) => {
              const rowBytes = width * elementBytes
              const from = block.address + BigInt(offset + start * rowBytes)
              return block.memory.read(from, rows * rowBytes)
            })
          : tileRegions(block).map((region) => tiles.read(region, start, tokens))
      const parts = await Promise.all(reads)
      const pages = Array.from({ length: layers }, (_, i) => ({
        k: parts[2 * i] ?? new Uint8Array(0),
        v: parts[2 * i + 1] ?? new Uint8Array(0),
      }))
      const seconds = Float64Array.from(block.times.subarray(start, tokens), Number)
      return { tokens: rows, times: seconds, layers: pages }
    },

    /**
     * A new entry of K/V from outside. `decode` writes the rows of what is encoded into the entry's block,
     * which is in a run meanwhile.
     * @throws {RankError} KV_CORRUPT when it is not of this model's shape
     */
    async import(
      given: KvPages | EncodedKv,
      decode: (kv: EncodedKv, entry: KvEntry) => Promise<void>,
    ): Promise<KvEntry> {
      const kv = checkedKv(given, config, precision)
      const entry = enter(await allocate(kv.tokens), kv.tokens)
      const { block } = entry
      block.used = kv.tokens
      writeTimes(block.times, kv.times)
      try {
        await (kv.codec === precision ? writeRows(block, kv.planes) : decode(kv, entry))
        return entry
      } catch (error) {
        release(entry)
        throw error
      } finally {
        blocks.endRun(block)
      }
    },
  }
}

/** Like Promise.all, but rejects only when none writes any more: the memory may then be freed. */
async function allDone(copies: readonly Promise<void>[]): Promise<void> {
  for (const outcome of await Promise.allSettled(copies)) {
    if (outcome.status === 'rejected') throw outcome.reason
  }
}
