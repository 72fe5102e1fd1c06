import koffi from 'koffi'
import { loadLibrary } from './native.js'
import type { Ort, Pointer, RunArguments } from './ort.js'

/** The inputs or the results of a lane's runs: where a run has them, and where this process has them. */
export type Mirror = { readonly at: Pointer; readonly host: Pointer; readonly bytes: Uint8Array }

/** One run, again and again: takes the inputs from the process's memory, resolves when the results are there. */
export type Replay = { run(): Promise<void>; release(): void }

/** What the runs of one shape read and write, in bytes from the mirrors' beginning. */
export type Traffic = {
  readonly inputs: Mirror
  readonly inputBytes: number
  /** Undefined where the runs write where the process has them. */
  readonly results: Mirror | undefined
  readonly resultBytes: number
}

/** What a lane runs on. Calls come from one thread, and what they begin is done in their order. */
export type LaneDevice = {
  mirror(bytes: number): Mirror
  release(mirror: Mirror): void
  /** `rows` rows of `width` bytes, from every `fromPitch` to every `toPitch` bytes; only begun. */
  copyRows(
    to: Pointer,
    toPitch: number,
    from: Pointer,
    fromPitch: number,
    width: number,
    rows: number,
  ): void
  zeroRows(to: Pointer, pitch: number, width: number, rows: number): void
  /** The run of `args`, its shapes and addresses for ever. */
  prepare(args: RunArguments, traffic: Traffic): Promise<Replay>
  close(): void
}

const libc = loadLibrary(null)
const memcpy = libc.func('memcpy', 'void*', ['void*', 'void*', 'size_t'])
const memset = libc.func('memset', 'void*', ['void*', 'int', 'size_t'])

/** The CPU, on which a run needs its inputs where the process has them anyway. */
export function hostLane(ort: Ort): LaneDevice {
  const allocator = ort.GetAllocatorWithDefaultOptions()
  return {
    mirror(bytes) {
      const at = ort.AllocatorAlloc(allocator, bytes)
      return { at, host: at, bytes: viewOf(at, bytes) }
    },
    release: ({ at }) => ort.AllocatorFree(allocator, at),
    copyRows(to, toPitch, from, fromPitch, width, rows) {
      for (let row = 0; row < rows; row++) {
        memcpy(to + BigInt(row * toPitch), from + BigInt(row * fromPitch), width)
      }
    },
    zeroRows(to, pitch, width, rows) {
      for (let row = 0; row < rows; row++) memset(to + BigInt(row * pitch), 0, width)
    },
    async prepare(args) {
      return { run: () => ort.run(args), release() {} }
    },
    close() {},
  }
}

/** Native memory as an array; whoever frees it lets go of the array first. */
export function viewOf(at: Pointer, bytes: number): Uint8Array {
  return new Uint8Array(koffi.view(at, bytes))
}
