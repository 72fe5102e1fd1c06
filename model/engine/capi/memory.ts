import { mapMemory, unmapMemory } from './map.js'
import { callAsync, loadLibrary } from './native.js'
import type { Ort, Pointer } from './ort.js'

/** OrtMemoryInfo's constants: a device allocator behind its arena, its default memory. */
const DEVICE_ALLOCATOR = 0
const DEFAULT_MEMORY = 0

/** A place where tensors lie. Copies run off the calling thread and need no alignment. */
export type TensorMemory = {
  readonly device: 'cpu' | 'cuda'
  /** OrtMemoryInfo of tensors there. */
  readonly info: Pointer
  /** `isLastResort`: memory with a bound of its own goes beyond it rather than fail. */
  allocate(bytes: number, isLastResort?: boolean): Pointer | Promise<Pointer>
  free(address: Pointer): void
  copy(to: Pointer, from: Pointer, bytes: number): Promise<void>
  read(from: Pointer, bytes: number): Promise<Uint8Array>
  write(to: Pointer, bytes: Uint8Array): Promise<void>
}

const libc = loadLibrary(null)
const memcpy = libc.func('memcpy', 'void*', ['void*', 'void*', 'size_t'])
const madvise = libc.func('madvise', 'int', ['intptr_t', 'size_t', 'int'])
const mallocTrim = find(() => libc.func('malloc_trim', 'int', ['size_t']))
const mallopt = find(() => libc.func('mallopt', 'int', ['int', 'int']))

const M_MMAP_THRESHOLD = -3
/**
 * What is larger is mapped by itself and goes back to the system when it is freed. Left alone, glibc
 * raises the bound to 32 MiB, and what models leave behind lies between what lives on: ten reloads of the
 * demo model under load added 13 % to the process. With a quarter of it what runs need for a moment costs
 * system time at each prefill, with this none that could be measured.
 */
const MAPPED_BYTES = 2 ** 19
mallopt?.(M_MMAP_THRESHOLD, MAPPED_BYTES)
/**
 * K/V stays, and is mapped by itself from so many bytes on. It comes and goes in all sizes: 64 MiB of it in
 * tiles of 300 KB lay in 190 MiB of malloc's after 8,000 rankings, and nothing of that went back.
 */
const MAPPED_TENSOR_BYTES = 2 ** 17
/** A process may have 65,530 mappings; threads, V8 and malloc need some, the last for what is beyond this. */
const MOST_MAPPED_TENSORS = 2 ** 14
/** Bytes by address, of all engines. */
const mappedTensors = new Map<Pointer, number>()

/** Linux's own. */
const MADV_HUGEPAGE = 14
const HUGE_PAGE_BYTES = 2 ** 21

/**
 * Gives free memory of malloc's back to the system: of a model that went, most lies between what lives
 * on. Nothing where the C library is not glibc.
 */
export async function trimMemory(): Promise<void> {
  if (mallocTrim !== undefined) await callAsync(mallocTrim, 0)
}

/** The process's own memory: mapped, and where it is little from ONNX Runtime's allocator without an arena. */
export function hostMemory(ort: Ort): TensorMemory & { close(): void } {
  const info = ort.CreateMemoryInfo('Cpu', DEVICE_ALLOCATOR, 0, DEFAULT_MEMORY)
  const allocator = ort.GetAllocatorWithDefaultOptions()
  return {
    device: 'cpu',
    info,
    allocate(bytes) {
      const mapped = mapTensor(bytes)
      if (mapped !== undefined) ort.adopt()
      const address = mapped ?? ort.AllocatorAlloc(allocator, bytes)
      adviseHugePages(address, bytes)
      return address
    },
    free(address) {
      if (unmapTensor(address)) ort.adopt(-1)
      else ort.AllocatorFree(allocator, address)
    },
    copy: (to, from, bytes) => copyBytes(to, from, bytes),
    async read(from, bytes) {
      const array = new Uint8Array(bytes)
      await copyBytes(array, from, bytes)
      return array
    },
    write: (to, bytes) => copyBytes(to, bytes, bytes.byteLength),
    close: () => ort.ReleaseMemoryInfo(info),
  }
}

function mapTensor(bytes: number): Pointer | undefined {
  if (bytes < MAPPED_TENSOR_BYTES || mappedTensors.size >= MOST_MAPPED_TENSORS) return undefined
  const address = mapMemory(bytes)
  if (address !== undefined) mappedTensors.set(address, bytes)
  return address
}

/** False where it is not mapped. */
function unmapTensor(address: Pointer): boolean {
  const bytes = mappedTensors.get(address)
  if (bytes === undefined) return false
  mappedTensors.delete(address)
  unmapMemory(address, bytes)
  return true
}

/**
 * Asks for pages of 2 MB where they fit: the kernel gives memory a page at a time as it is first written,
 * and 25 MB of K/V cost it 11 ms in pages of 4 KB, 3 ms in these. Only advice: it may do as it likes.
 */
function adviseHugePages(address: Pointer, bytes: number): void {
  if (process.platform !== 'linux' || bytes < 2 * HUGE_PAGE_BYTES) return
  const size = BigInt(HUGE_PAGE_BYTES)
  const start = ((address + size - 1n) / size) * size
  const end = ((address + BigInt(bytes)) / size) * size
  if (end > start) madvise(start, Number(end - start), MADV_HUGEPAGE)
}

/** Off the event loop: a user's K/V can be 100 MB. */
async function copyBytes(
  to: Pointer | Uint8Array,
  from: Pointer | Uint8Array,
  bytes: number,
): Promise<void> {
  await callAsync(memcpy, to, from, bytes)
}

function find<T>(lookUp: () => T): T | undefined {
  try {
    return lookUp()
  } catch {
    return undefined
  }
}
