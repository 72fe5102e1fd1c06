import { InferenceSession, Tensor } from 'onnxruntime-node'
import { fromBf16, toBf16 } from '../../bf16.js'
import type { TensorType } from '../../export/nodes.js'
import { float16Tensor } from '../float16.js'
import {
  bytesOf,
  decoderGraph,
  encoderGraph,
  type KvCodecName,
  type KvPrecision,
  planeBytes,
  planesOf,
  TENSOR_TYPE,
} from './graphs.js'

/** Codec of arrays that belong together, as K and V of every layer do: each of (rows, its own width). */
export type KvCodec = {
  readonly name: KvCodecName
  /** An array is its own only plane: there is nothing to encode or decode. */
  readonly isPlain: boolean
  /** Per array, bytes of one row in the engine's precision. */
  readonly rowBytes: readonly number[]
  /** Per plane, the first array's before the second's, bytes of one row. */
  readonly planeBytes: readonly number[]
  /** Planes of the arrays; a plane may be an array itself. */
  encode(arrays: readonly Uint8Array[]): Promise<readonly Uint8Array[]>
  /**
   * The way back, into `arrays`, which begin where an element may; exact for a codec of the engine's
   * own precision.
   */
  decode(planes: readonly Uint8Array[], arrays: readonly Uint8Array[]): Promise<void>
  close(): Promise<void>
}

/**
 * Runs on the calling thread, which must not be the event loop's: a user's K/V can be 25 MB. A session is
 * made when something is first encoded or decoded: a writer decodes nothing, a reader encodes nothing.
 */
export function createKvCodec(
  name: KvCodecName,
  precision: KvPrecision,
  widths: readonly number[],
): KvCodec {
  const planes = widths.flatMap((width) => planesOf(name, width))
  const isPlain = name === precision
  const sizes = {
    ...{ name, isPlain },
    rowBytes: widths.map((width) => width * bytesOf(TENSOR_TYPE[precision])),
    planeBytes: planeBytes(name, widths),
  }
  if (isPlain) {
    return {
      ...sizes,
      encode: async (arrays) => arrays,
      async decode(encoded, arrays) {
        for (const [i, rows] of arrays.entries()) rows.set(encoded[i] ?? NO_BYTES)
      },
      close: async () => {},
    }
  }
  if (name === 'bf16' || precision === 'bf16') {
    // onnxruntime-node has no bfloat16 tensors: by way of float32, whose upper half that is.
    const between = createKvCodec(wider(name), wider(precision), widths)
    return {
      ...sizes,
      async encode(arrays) {
        const wide = precision === 'bf16' ? arrays.map(fromBf16) : arrays
        const encoded = await between.encode(wide)
        return name === 'bf16' ? encoded.map(toBf16) : encoded
      },
      async decode(encoded, arrays) {
        const wide = name === 'bf16' ? encoded.map(fromBf16) : encoded
        if (precision !== 'bf16') return between.decode(wide, arrays)
        const rows = arrays.map(({ byteLength }) => new Uint8Array(2 * byteLength))
        await between.decode(wide, rows)
        for (const [i, array] of arrays.entries()) array.set(toBf16(rows[i] ?? NO_BYTES))
      },
      close: between.close,
    }
  }
  const own = TENSOR_TYPE[precision]
  const encoder = lazily(() => openSession(encoderGraph(name, precision)))
  const decoder = lazily(() => openSession(decoderGraph(name, precision, widths.length)))
  return {
    ...sizes,
    async encode(arrays) {
      const session = await encoder.get()
      const encoded: Uint8Array[] = []
      for (const [i, width] of widths.entries()) {
        const out = await session.run({ x: tensorOf(own, arrays[i] ?? NO_BYTES, width) })
        for (const p of planesOf(name, width).keys()) encoded.push(bytesIn(out[`plane.${p}`]))
      }
      return encoded
    },
    // All arrays in one run: each run takes a turn of the event loop.
    async decode(encoded, arrays) {
      const session = await decoder.get()
      const feeds = Object.fromEntries(
        planes.map(({ type, width }, p) => [
          `plane.${p}`,
          tensorOf(type, encoded[p] ?? NO_BYTES, width),
        ]),
      )
      if (own === 'float32') {
        // What ONNX Runtime allocates itself is copied once more, and half of the time goes there.
        const fetches = widths.map((width, i) => tensorOf(own, arrays[i] ?? NO_BYTES, width))
        await session.run(feeds, Object.fromEntries(fetches.map((tensor, i) => [`x.${i}`, tensor])))
        return
      }
      // Its outputs must be Tensors, which of float16 there are none on Node 24: see float16Tensor.
      const out = await session.run(feeds)
      for (const [i, rows] of arrays.entries()) rows.set(bytesIn(out[`x.${i}`]))
    },
    async close() {
      for (const { made } of [encoder, decoder]) await (await made())?.release()
    },
  }
}

const NO_BYTES = new Uint8Array(0)

function wider<T extends KvCodecName>(name: T): Exclude<T, 'bf16'> | 'fp32' {
  return name === 'bf16' ? 'fp32' : (name as Exclude<T, 'bf16'>)
}

function openSession(graph: Uint8Array): Promise<InferenceSession> {
  return InferenceSession.create(graph, {
    intraOpNumThreads: 1,
    interOpNumThreads: 1,
    executionMode: 'sequential',
    // A pattern is kept per input shape, and histories have every length there is.
    enableMemPattern: false,
    logSeverityLevel: 3,
  })
}

function lazily<T>(make: () => Promise<T>) {
  let value: Promise<T> | undefined
  return {
    get() {
      value ??= make()
      return value
    },
    /** What `get` made, if it was called. */
    made: () => value,
  }
}

/** (rows, width) over `bytes`, which are copied where they are not aligned. (A Buffer's slice is no copy.) */
function tensorOf(type: TensorType, bytes: Uint8Array, width: number): Tensor {
  const size = bytesOf(type)
  const { buffer, byteOffset } =
    bytes.byteOffset % size === 0 && bytes.buffer instanceof ArrayBuffer
      ? bytes
      : new Uint8Array(bytes)
  const length = bytes.byteLength / size
  const dims = [length / width, width]
  if (type === 'float16') return float16Tensor(new Uint16Array(buffer, byteOffset, length), dims)
  return type === 'int8'
    ? new Tensor('int8', new Int8Array(buffer, byteOffset, length), dims)
    : new Tensor('float32', new Float32Array(buffer, byteOffset, length), dims)
}

function bytesIn(value: unknown): Uint8Array {
  if (!(value instanceof Tensor) || !ArrayBuffer.isView(value.data)) {
    throw new Error('a codec gives tensors')
  }
  const { buffer, byteOffset, byteLength } = value.data
  return new Uint8Array(buffer, byteOffset, byteLength)
}
