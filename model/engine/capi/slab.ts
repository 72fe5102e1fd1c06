import { RankError } from '../../errors.js'
import type { TensorMemory } from './memory.js'
import type { Pointer } from './ort.js'
import { align } from './tensor.js'

type Range = { offset: number; bytes: number }

export type Slab = ReturnType<typeof createSlab>

/**
 * Hands out parts of [base, base + bytes): the smallest free range that holds a request, and what is
 * given back joins its neighbours, so that nothing but what is in use stands between two free ranges.
 */
export function createSlab(base: Pointer, bytes: number) {
  /** Ascending, no two of them adjacent. */
  const free: Range[] = bytes === 0 ? [] : [{ offset: 0, bytes }]
  const used = new Map<Pointer, Range>()
  /** Index of the first free range at or behind `offset`. */
  const after = (offset: number): number => {
    let [low, high] = [0, free.length]
    while (low < high) {
      const middle = (low + high) >> 1
      if ((free[middle]?.offset ?? 0) < offset) low = middle + 1
      else high = middle
    }
    return low
  }
  return {
    /** Undefined where no free range is as long. */
    allocate(wanted: number): Pointer | undefined {
      const size = align(Math.max(wanted, 1))
      let best: Range | undefined
      for (const range of free) {
        if (range.bytes >= size && (best === undefined || range.bytes < best.bytes)) best = range
      }
      if (best === undefined) return undefined
      const { offset } = best
      const address = base + BigInt(offset)
      used.set(address, { offset, bytes: size })
      if (best.bytes === size) free.splice(free.indexOf(best), 1)
      else {
        best.offset += size
        best.bytes -= size
      }
      return address
    },
    /** False for an address that is not the slab's. */
    free(address: Pointer): boolean {
      const range = used.get(address)
      if (range === undefined) return false
      used.delete(address)
      const next = after(range.offset)
      const [before, behind] = [free[next - 1], free[next]]
      const joinsBefore = before !== undefined && before.offset + before.bytes === range.offset
      const joinsBehind = behind !== undefined && range.offset + range.bytes === behind.offset
      const start = joinsBefore ? before : range
      if (joinsBefore) before.bytes += range.bytes
      if (joinsBehind) start.bytes += behind.bytes
      free.splice(next, joinsBehind ? 1 : 0, ...(joinsBefore ? [] : [range]))
      return true
    },
    freeRanges: (): readonly Readonly<Range>[] => free,
  }
}

/**
 * `bytes` of a memory, taken at once and handed out from then on: what its users do among themselves
 * neither grows nor splits what is left of it for others.
 */
export async function slabMemory(
  memory: TensorMemory,
  bytes: number,
): Promise<TensorMemory & { close(): void }> {
  const base = await memory.allocate(bytes)
  const slab = createSlab(base, bytes)
  return {
    ...memory,
    allocate(wanted, isLastResort) {
      const found = slab.allocate(wanted)
      if (found !== undefined) return found
      if (isLastResort) return memory.allocate(wanted)
      throw new RankError('ENGINE_UNAVAILABLE', `no ${wanted} of ${bytes} bytes are free in a row`)
    },
    free(address) {
      if (!slab.free(address)) memory.free(address)
    },
    close: () => memory.free(base),
  }
}
