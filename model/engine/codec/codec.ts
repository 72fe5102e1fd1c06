import { InferenceSession, Tensor } from 'onnxruntime-node'
import type { TensorType } from '../../export/onnx.js'
import type { Precision } from '../../manifest.js'
import { float16Tensor } from '../float16.js'
import { decoderGraph, encoderGraph, type KvCodecName, planesOf, tensorType } from './graphs.js'

export type KvCodec = {
  readonly name: KvCodecName
  /** Bytes of one row of each plane. */
  rowBytes(width: number): readonly number[]
  /** Rows (rows, width) in the bundle's precision to planes; `rows` may be the result itself. */
  encode(rows: Uint8Array, width: number): Promise<readonly Uint8Array[]>
  /** The way back; exact for a codec of the bundle's own precision. */
  decode(planes: readonly Uint8Array[], width: number): Promise<Uint8Array>
  close(): Promise<void>
}

const BYTES: Partial<Record<TensorType, number>> = { float32: 4, float16: 2, int8: 1 }

/** Runs on the calling thread, which must not be the event loop's: a user's K/V can be 25 MB. */
export async function createKvCodec(name: KvCodecName, precision: Precision): Promise<KvCodec> {
  const own = tensorType(precision)
  const rowBytes = (width: number) =>
    planesOf(name, width).map((plane) => plane.width * bytesOf(plane.type))
  if (name === precision) {
    return {
      name,
      rowBytes,
      encode: async (rows) => [rows],
      decode: async ([rows = new Uint8Array(0)]) => rows,
      close: async () => {},
    }
  }
  const [encoder, decoder] = await Promise.all(
    [encoderGraph(name, precision), decoderGraph(name, precision)].map((graph) =>
      InferenceSession.create(graph, {
        intraOpNumThreads: 1,
        interOpNumThreads: 1,
        executionMode: 'sequential',
        // A pattern is kept per input shape, and histories have every length there is.
        enableMemPattern: false,
        logSeverityLevel: 3,
      }),
    ),
  )
  if (encoder === undefined || decoder === undefined) throw new Error('two sessions were made')
  return {
    name,
    rowBytes,
    async encode(rows, width) {
      const out = await encoder.run({ x: tensorOf(own, rows, width) })
      return planesOf(name, width).map((_, i) => bytesIn(out[`plane.${i}`]))
    },
    async decode(planes, width) {
      const feeds: Record<string, Tensor> = {}
      planesOf(name, width).forEach((plane, i) => {
        feeds[`plane.${i}`] = tensorOf(plane.type, planes[i] ?? new Uint8Array(0), plane.width)
      })
      return bytesIn((await decoder.run(feeds)).x)
    },
    async close() {
      await Promise.all([encoder.release(), decoder.release()])
    },
  }
}

function bytesOf(type: TensorType): number {
  const bytes = BYTES[type]
  if (bytes === undefined) throw new Error(`no K/V is of type ${type}`)
  return bytes
}

/** (rows, width) over `bytes`, which are copied where they are not aligned. */
function tensorOf(type: TensorType, bytes: Uint8Array, width: number): Tensor {
  const size = bytesOf(type)
  const { buffer, byteOffset } =
    bytes.byteOffset % size === 0 && bytes.buffer instanceof ArrayBuffer ? bytes : bytes.slice()
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
