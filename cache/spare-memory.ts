/** Memory that was used before and may be used again: what lies in it is of no meaning. */
export type SpareMemory = {
  /** At least so many bytes, and less than twice as many. */
  take(bytes: number): ArrayBuffer
  /** Whoever gives a buffer back reads and writes it no more. */
  give(buffer: ArrayBuffer): void
}

/** Below it an allocation costs nothing that counts. */
const SMALLEST_BYTES = 2 ** 16

/**
 * Keeps up to `maxBytes`. The memory of a long history's K/V costs as much to get as to fill: the kernel
 * maps it page by page, and so many megabytes outside of its heap make V8 collect garbage.
 */
export function createSpareMemory(maxBytes: number): SpareMemory {
  const bySize = new Map<number, ArrayBuffer[]>()
  let spareBytes = 0
  return {
    take(bytes) {
      const size = Math.max(SMALLEST_BYTES, 2 ** Math.ceil(Math.log2(Math.max(1, bytes))))
      const buffer = bySize.get(size)?.pop()
      if (buffer === undefined) return new ArrayBuffer(size)
      spareBytes -= size
      return buffer
    },
    give(buffer) {
      const size = buffer.byteLength
      // One that was handed to another thread has 0 bytes here.
      if (size < SMALLEST_BYTES || spareBytes + size > maxBytes) return
      const same = bySize.get(size) ?? []
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
): { readonly buffer: ArrayBuffer; readonly arrays: readonly Uint8Array[] } {
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
