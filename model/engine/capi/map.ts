import koffi from 'koffi'
import { RankError } from '../../errors.js'
import { callAsync, loadLibrary } from './native.js'
import type { Pointer } from './ort.js'

const libc = loadLibrary(null)
const mmap = libc.func('mmap', 'intptr_t', ['void*', 'size_t', 'int', 'int', 'int', 'int64_t'])
const munmap = libc.func('munmap', 'int', ['void*', 'size_t'])

const PROT_READ = 1
const PROT_WRITE = 2
const MAP_SHARED = 1
const MAP_PRIVATE = 2
const MAP_ANONYMOUS = process.platform === 'linux' ? 0x20 : 0x1000
/** With MAP_POPULATE, which is Linux's own: a look-up then waits for no page. */
const POPULATED = process.platform === 'linux' ? MAP_SHARED | 0x8000 : MAP_SHARED

/** A file's bytes as memory that all processes share and that nothing may write to. */
export function mapFile(
  fd: number,
  bytes: number,
  flags = MAP_SHARED,
): { address: Pointer; unmap(): Promise<void> } {
  const address = BigInt(mmap(null, bytes, PROT_READ, flags, fd, 0))
  if (address === -1n) throw new RankError('ENGINE_UNAVAILABLE', `cannot map ${bytes} bytes`)
  // Off the event loop: gigabytes of pages go one by one.
  return { address, unmap: () => callAsync(munmap, address, bytes) }
}

/** So many bytes of zeros of the system's own, page by page as they are first touched; undefined where it has none. */
export function mapMemory(bytes: number): Pointer | undefined {
  const flags = MAP_PRIVATE | MAP_ANONYMOUS
  const address = BigInt(mmap(null, bytes, PROT_READ | PROT_WRITE, flags, -1, 0))
  return address === -1n ? undefined : address
}

/** Gives back what `mapMemory` gave, all of it and at once. */
export function unmapMemory(address: Pointer, bytes: number): void {
  munmap(address, bytes)
}

const views = new FinalizationRegistry((unmap: () => unknown) => unmap())

/**
 * The same as an array, every page in place, mapped until nobody has its buffer any more. Writing to it stops the
 * process.
 */
export function viewFile(fd: number, bytes: number): ArrayBuffer {
  const { address, unmap } = mapFile(fd, bytes, POPULATED)
  const buffer = koffi.view(address, bytes)
  views.register(buffer, unmap)
  return buffer
}
