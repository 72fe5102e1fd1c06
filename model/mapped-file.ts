import { closeSync, fstatSync, openSync, readSync } from 'node:fs'

/** Absent where koffi has no library for the platform: files are then read. */
const native = await import('./engine/capi/map.js').catch(() => undefined)

const CHUNK_BYTES = 64 * 2 ** 20

/**
 * A whole file, read-only: its own pages in the page cache, which processes share, where files can be mapped;
 * else, or where `isMapped` is false, a copy.
 */
export function readOnlyFile(path: string, isMapped = true): ArrayBuffer {
  const fd = openSync(path, 'r')
  try {
    const bytes = fstatSync(fd).size
    // An empty file has nothing to map.
    if (bytes === 0 || native === undefined || !isMapped) return copyOf(fd, bytes)
    return native.viewFile(fd, bytes)
  } finally {
    closeSync(fd)
  }
}

function copyOf(fd: number, bytes: number): ArrayBuffer {
  const copy = new Uint8Array(bytes)
  for (let done = 0; done < bytes; ) {
    const got = readSync(fd, copy, done, Math.min(CHUNK_BYTES, bytes - done), done)
    if (got === 0) throw new Error(`the file ends before byte ${bytes}`)
    done += got
  }
  return copy.buffer
}
