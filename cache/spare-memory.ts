/**
 * Memory that was used before and may be used again, by any thread of the process: what lies in it is of no
 * meaning. Whoever is lent a part reads and writes it until it is given back, and no longer.
 */
export type SpareMemory = {
  /** At least so many bytes, and less than twice as many. */
  take(bytes: number): SharedArrayBuffer
  /** Of one that is spare already nothing comes. */
  give(buffer: SharedArrayBuffer): void
}

/** Below it an allocation costs nothing that counts. */
const SMALLEST_BYTES = 2 ** 16

/**
 * Keeps up to `maxBytes`. The memory of a long history's K/V costs more to get than to fill: the kernel
 * maps it page by page. Shared memory is also none of what V8 collects garbage for, and goes from
 * thread to thread without changing hands.
 */
export function createSpareMemory(maxBytes: number): SpareMemory {
  const bySize = new Map<number, SharedArrayBuffer[]>()
  let spareBytes = 0
  return {
    take(bytes) {
      const size = Math.max(SMALLEST_BYTES, 2 ** Math.ceil(Math.log2(Math.max(1, bytes))))
      const buffer = bySize.get(size)?.pop()
      if (buffer === undefined) return new SharedArrayBuffer(size)
      spareBytes -= size
      return buffer
    },
    give(buffer) {
      const size = buffer.byteLength
      const same = bySize.get(size) ?? []
      if (spareBytes + size > maxBytes || same.includes(buffer)) return
      same.push(buffer)
      bySize.set(size, same)
      spareBytes += size
    },
  }
}

/** Arrays of these lengths in bytes over one buffer, each where any element may begin. */
export function arraysIn(
  memory: SpareMemory,
  lengths: readonly number[],
): { readonly buffer: SharedArrayBuffer; readonly arrays: readonly Uint8Array[] } {
  const starts: number[] = []
  let end = 0
  for (const length of lengths) {
    starts.push(end)
    end += Math.ceil(length / ALIGN_BYTES) * ALIGN_BYTES
  }
  const buffer = memory.take(end)
  const arrays = lengths.map((length, i) => new Uint8Array(buffer, starts[i], length))
  return { buffer, arrays }
}

/** A line of the processor's cache. */
const ALIGN_BYTES = 64
