import { bindCudaRuntime, DEFAULT_STREAM, MEMCPY_DEFAULT } from './cuda-runtime.js'
import { loadLibrary } from './native.js'
import type { Pointer } from './ort.js'

/** Blocking copies for a thread that has nothing else to do; on a GPU all but `read` only begin them. */
export type DeviceOps = {
  /** `rows` rows of `width` bytes, from every `fromPitch` to every `toPitch` bytes. */
  copyRows(
    to: Pointer,
    toPitch: number,
    from: Pointer,
    fromPitch: number,
    width: number,
    rows: number,
  ): void
  zeroRows(to: Pointer, pitch: number, width: number, rows: number): void
  write(to: Pointer, bytes: Uint8Array): void
  /** Waits for what the calls above began. */
  finish(): void
  read(into: Uint8Array, from: Pointer): void
}

/** `library`: as `findCudaRuntime` names it. */
export function cudaOps(library: string): DeviceOps {
  const { bind, check } = bindCudaRuntime(library)
  const P = 'void*'
  const SIZE = 'size_t'
  const set2d = bind('cudaMemset2DAsync', P, SIZE, 'int', SIZE, SIZE, P)
  const copy = bind('cudaMemcpyAsync', P, P, SIZE, 'int', P)
  const synchronize = bind('cudaStreamSynchronize', P)
  const finish = () => check(synchronize(DEFAULT_STREAM))
  return {
    copyRows(to, toPitch, from, fromPitch, width, rows) {
      // One by one: the driver's own copy of rows ran at a third of the memory's speed.
      for (let row = 0; row < rows; row++) {
        const target = to + BigInt(row * toPitch)
        check(copy(target, from + BigInt(row * fromPitch), width, MEMCPY_DEFAULT, DEFAULT_STREAM))
      }
    },
    zeroRows: (to, pitch, width, rows) => check(set2d(to, pitch, 0, width, rows, DEFAULT_STREAM)),
    write: (to, bytes) => check(copy(to, bytes, bytes.byteLength, MEMCPY_DEFAULT, DEFAULT_STREAM)),
    finish,
    read(into, from) {
      check(copy(into, from, into.byteLength, MEMCPY_DEFAULT, DEFAULT_STREAM))
      finish()
    },
  }
}

export function hostOps(): DeviceOps {
  const libc = loadLibrary(null)
  const memcpy = libc.func('memcpy', 'void*', ['void*', 'void*', 'size_t'])
  const memset = libc.func('memset', 'void*', ['void*', 'int', 'size_t'])
  return {
    copyRows(to, toPitch, from, fromPitch, width, rows) {
      for (let row = 0; row < rows; row++) {
        memcpy(to + BigInt(row * toPitch), from + BigInt(row * fromPitch), width)
      }
    },
    zeroRows(to, pitch, width, rows) {
      for (let row = 0; row < rows; row++) memset(to + BigInt(row * pitch), 0, width)
    },
    write(to, bytes) {
      memcpy(to, bytes, bytes.byteLength)
    },
    finish() {},
    read(into, from) {
      memcpy(into, from, into.byteLength)
    },
  }
}
