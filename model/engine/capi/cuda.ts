import { RankError } from '../../errors.js'
import { bindCudaRuntime, DEFAULT_STREAM, findCudaRuntime, MEMCPY_DEFAULT } from './cuda-runtime.js'
import { showOnly } from './device.js'
import { type HostPages, hostTable } from './host-table.js'
import type { TensorMemory } from './memory.js'
import { callAsync } from './native.js'
import type { Ort, Pointer } from './ort.js'
import type { Upload } from './weights.js'

const HOST_ALLOC_PORTABLE = 1
const HOST_ALLOC_MAPPED = 2
/** The initializer that holds a bundle's embedding tables. */
const TABLE = 'embedding'
const ATTRIBUTE_MAJOR = 75
const ATTRIBUTE_MINOR = 76
/** The one device that the process sees: see `openCuda`. */
const DEVICE = 0

type Address = Pointer | Uint8Array

export type CudaLimits = {
  /** Limit of each session's arena; none when 0. */
  readonly arenaBytes: number
  /** The largest embedding table that goes to the GPU; half of its free memory when absent. */
  readonly tableBytes?: number | undefined
  /** A table stays on the host: as the pages of its file, or a copy of them where CUDA does not take those. */
  readonly onHostTable?: ((bytes: number, isCopy: boolean) => void) | undefined
}

export type Cuda = {
  /** Name of CUDA's runtime library. */
  readonly runtime: string
  /** As in "9.0" for an H100. */
  readonly computeCapability: string
  /** Adds the provider to session options. */
  readonly addProvider: (options: Pointer) => void
  /** The same for sessions that put all their runs on one stream. */
  readonly addStreamProvider: (options: Pointer, stream: Pointer) => void
  /** OrtMemoryInfo of the GPU's memory. */
  readonly info: Pointer
  freeBytes(): number
  /** Of the whole GPU, by every process. @throws {RankError} ENGINE_UNAVAILABLE once the GPU is lost */
  memory(): { readonly usedBytes: number; readonly totalBytes: number }
  /** Copies a tensor to the GPU once, an embedding table only where it is not too large. */
  readonly upload: Upload
  /** The GPU's memory, of no session's arena. */
  readonly device: TensorMemory
  /** Page-locked memory of the host, which the GPU copies to and from at full speed. */
  readonly pinned: TensorMemory
  close(): void
}

/**
 * The GPU of this process: one process per GPU, so the others are hidden from CUDA before it starts.
 * @throws {RankError} ENGINE_UNAVAILABLE without CUDA, the device or the provider
 */
export function openCuda(ort: Ort, deviceId: number, limits: CudaLimits): Cuda {
  const runtime = findCudaRuntime()
  showOnly(deviceId)
  const { bind, check } = bindCudaRuntime(runtime)
  const getAttribute = bind('cudaDeviceGetAttribute', 'void*', 'int', 'int')
  const memGetInfo = bind('cudaMemGetInfo', 'void*', 'void*')
  const malloc = bind('cudaMalloc', 'void*', 'size_t')
  const free = bind('cudaFree', 'void*')
  const hostAlloc = bind('cudaHostAlloc', 'void*', 'size_t', 'uint32_t')
  const freeHost = bind('cudaFreeHost', 'void*')
  const hostRegister = bind('cudaHostRegister', 'void*', 'size_t', 'uint32_t')
  const hostUnregister = bind('cudaHostUnregister', 'void*')
  const devicePointer = bind('cudaHostGetDevicePointer', 'void*', 'void*', 'uint32_t')
  const memcpy = bind('cudaMemcpy', 'void*', 'void*', 'size_t', 'int')
  const synchronize = bind('cudaStreamSynchronize', 'void*')

  const attribute = (which: number): number => {
    const value = new Int32Array(1)
    check(getAttribute(value, which, DEVICE))
    return value[0] ?? 0
  }
  const computeCapability = `${attribute(ATTRIBUTE_MAJOR)}.${attribute(ATTRIBUTE_MINOR)}`
  const plain = createProviderOptions(ort, limits.arenaBytes)
  const add = (options: Pointer, provider: Pointer) =>
    orUnavailable(() => ort.SessionOptionsAppendExecutionProvider_CUDA_V2(options, provider))
  const info = ort.CreateMemoryInfo('Cuda', 0, DEVICE, 0)

  const memory = () => {
    const bytes = new BigUint64Array(2)
    check(memGetInfo(bytes.subarray(0, 1), bytes.subarray(1)))
    const [free = 0n, total = 0n] = bytes
    return { usedBytes: Number(total - free), totalBytes: Number(total) }
  }
  const freeBytes = (): number => {
    const { usedBytes, totalBytes } = memory()
    return totalBytes - usedBytes
  }
  const copyBytes = async (to: Address, from: Address, bytes: number): Promise<void> =>
    check(await callAsync(memcpy, to, from, bytes, MEMCPY_DEFAULT))
  /**
   * From the GPU to itself and from memory that is not pinned cudaMemcpy returns before it has ended,
   * and the streams of ONNX Runtime do not wait for its stream.
   */
  const copyToEnd = async (to: Address, from: Address, bytes: number): Promise<void> => {
    await copyBytes(to, from, bytes)
    check(await callAsync(synchronize, DEFAULT_STREAM))
  }
  const copies = {
    copy: (to: Pointer, from: Pointer, bytes: number) => copyToEnd(to, from, bytes),
    async read(from: Pointer, bytes: number) {
      const array = new Uint8Array(bytes)
      await copyBytes(array, from, bytes)
      return array
    },
    write: (to: Pointer, bytes: Uint8Array) => copyToEnd(to, bytes, bytes.byteLength),
  }

  const hostPages: HostPages = {
    register: (from, bytes, flags) => check(hostRegister(from, bytes, flags)),
    unregister: (from) => check(hostUnregister(from)),
    deviceAddress(from) {
      const address = new BigUint64Array(1)
      check(devicePointer(address, from, 0))
      return address[0] ?? 0n
    },
    copy(from, bytes) {
      const address = new BigUint64Array(1)
      check(hostAlloc(address, bytes, HOST_ALLOC_PORTABLE | HOST_ALLOC_MAPPED))
      const [to = 0n] = address
      check(memcpy(to, from, bytes, MEMCPY_DEFAULT))
      return { address: to, free: () => check(freeHost(to)) }
    },
  }

  return {
    computeCapability,
    runtime,
    addProvider: (options) => add(options, plain),
    addStreamProvider(options, stream) {
      const provider = createProviderOptions(ort, limits.arenaBytes)
      try {
        orUnavailable(() =>
          ort.UpdateCUDAProviderOptionsWithValue(provider, 'user_compute_stream', stream),
        )
        add(options, provider)
      } finally {
        ort.ReleaseCUDAProviderOptions(provider)
      }
    },
    info,
    freeBytes,
    memory,
    upload(from, bytes, name) {
      // Of a table on the host only the rows that a run gathers cross the bus.
      if (name === TABLE && bytes > (limits.tableBytes ?? freeBytes() / 2)) {
        const table = hostTable(hostPages, from, bytes)
        limits.onHostTable?.(bytes, table.isCopy)
        return table
      }
      const address = new BigUint64Array(1)
      check(malloc(address, bytes))
      const [to = 0n] = address
      check(memcpy(to, from, bytes, MEMCPY_DEFAULT))
      check(synchronize(DEFAULT_STREAM))
      return { address: to, free: () => check(free(to)) }
    },
    device: {
      ...copies,
      device: 'cuda',
      info,
      allocate(bytes) {
        const address = new BigUint64Array(1)
        check(malloc(address, bytes))
        return address[0] ?? 0n
      },
      free(address) {
        free(address)
      },
    },
    pinned: {
      ...copies,
      device: 'cpu',
      info,
      // Locking pages takes milliseconds: not on the calling thread.
      async allocate(bytes) {
        const address = new BigUint64Array(1)
        check(await callAsync<number>(hostAlloc, address, bytes, HOST_ALLOC_PORTABLE))
        return address[0] ?? 0n
      },
      free: (address) => {
        void callAsync(freeHost, address)
      },
    },
    close() {
      ort.ReleaseCUDAProviderOptions(plain)
      ort.ReleaseMemoryInfo(info)
    },
  }
}

/** @throws {RankError} ENGINE_UNAVAILABLE without the provider's library: this is what loads it */
export function createProviderOptions(ort: Ort, memoryLimitBytes: number): Pointer {
  const options = orUnavailable(() => ort.CreateCUDAProviderOptions())
  const entries = {
    device_id: String(DEVICE),
    // float32 stays float32: TF32 gave errors of 9e-3 on the golden cases.
    use_tf32: '0',
    // Exact steps: doubling would take memory that K/V could have.
    arena_extend_strategy: 'kSameAsRequested',
    ...(memoryLimitBytes === 0 ? {} : { gpu_mem_limit: String(memoryLimitBytes) }),
  }
  const keys = Object.keys(entries)
  try {
    orUnavailable(() =>
      ort.UpdateCUDAProviderOptions(options, keys, Object.values(entries), keys.length),
    )
    return options
  } catch (error) {
    ort.ReleaseCUDAProviderOptions(options)
    throw error
  }
}

function orUnavailable<T>(work: () => T): T {
  try {
    return work()
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RankError('ENGINE_UNAVAILABLE', `ONNX Runtime's CUDA provider: ${why}`, { cause })
  }
}
