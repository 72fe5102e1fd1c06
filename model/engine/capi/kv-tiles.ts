import type { HstuConfig } from '../../config.js'
import { callAsync, loadLibrary } from './native.js'
import type { Pointer } from './ort.js'

/** Tokens of a tile's block, and what a head's width must be a multiple of. */
export const TILE_TOKENS = 32

/** K or V of one layer, as tiles (heads, capacity, width of a head): see model/kernels/cpu/kv-tiles.h. */
export type TileRegion = {
  readonly address: Pointer
  readonly isKey: boolean
  readonly heads: number
  readonly capacity: number
  readonly width: number
}

export type KvTiles = ReturnType<typeof openKvTiles>

/** Whether a model's heads fill tiles: others would take more memory so. */
export function fillsTiles({ dqk, dv }: Pick<HstuConfig, 'dqk' | 'dv'>): boolean {
  return dqk % TILE_TOKENS === 0 && dv % TILE_TOKENS === 0
}

/**
 * The way between rows of bf16 and the tiles that kernels keep K/V in: only what leaves the process, or comes
 * from outside, takes it.
 * @throws when the library has none
 */
export function openKvTiles(library: string) {
  const numbers =
    'int64_t is_key, int64_t heads, int64_t capacity, int64_t width, int64_t start, int64_t count'
  const declared = (name: string) =>
    loadLibrary(library).func(`void ${name}(void* tiles, void* rows, ${numbers})`)
  const fromRows = declared('PeregrineTilesFromRows')
  const toRows = declared('PeregrineTilesToRows')
  const call = (
    way: typeof fromRows,
    { address, isKey, heads, capacity, width }: TileRegion,
    rows: Uint8Array,
    start: number,
  ) => {
    const count = rows.byteLength / (2 * heads * width)
    return callAsync<void>(way, address, rows, +isKey, heads, capacity, width, start, count)
  }
  return {
    /** Rows (count, heads · width) become the tokens from `start` on. */
    write: (region: TileRegion, rows: Uint8Array, start: number): Promise<void> =>
      call(fromRows, region, rows, start),
    /** Tokens [start, end) as rows. */
    async read(region: TileRegion, start: number, end: number): Promise<Uint8Array> {
      const rows = new Uint8Array(Math.max(0, end - start) * region.heads * region.width * 2)
      await call(toRows, region, rows, start)
      return rows
    },
  }
}
