import type { Pointer } from './ort.js'

const REGISTER_PORTABLE = 1
const REGISTER_MAPPED = 2
const REGISTER_READ_ONLY = 8

/** What of CUDA's runtime lets a GPU read the host's memory; calls throw where CUDA refuses. */
export type HostPages = {
  register(from: Pointer, bytes: number, flags: number): void
  unregister(from: Pointer): void
  /** The GPU's address of what was registered. */
  deviceAddress(from: Pointer): Pointer
  /** A copy in pinned memory, which the GPU reads by the same address. */
  copy(from: Pointer, bytes: number): { readonly address: Pointer; free(): void }
}

export type HostTable = {
  readonly address: Pointer
  /** CUDA did not take the pages of the file. */
  readonly isCopy: boolean
  free(): void
}

/** A mapped table as a GPU can read it: its file's own pages, which processes share, or a copy of them. */
export function hostTable(pages: HostPages, from: Pointer, bytes: number): HostTable {
  const registered = tryRegister(pages, from, bytes)
  if (registered !== undefined) return { ...registered, isCopy: false }
  return { ...pages.copy(from, bytes), isCopy: true }
}

function tryRegister(pages: HostPages, from: Pointer, bytes: number) {
  try {
    pages.register(from, bytes, REGISTER_PORTABLE | REGISTER_MAPPED | REGISTER_READ_ONLY)
  } catch {
    return undefined
  }
  const free = () => pages.unregister(from)
  try {
    return { address: pages.deviceAddress(from), free }
  } catch {
    free()
    return undefined
  }
}
