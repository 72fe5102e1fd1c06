import type { NodeBuilder, TensorType } from '../../export/nodes.js'
import { onnxGraph } from '../../export/onnx.js'
import { castTo } from '../../export/ops.js'
import type { Precision } from '../../manifest.js'

/** How K/V is written outside of the engine. Tier 2 writes the place in this list: it only grows at its end. */
export const KV_CODECS = ['fp32', 'fp16', 'int8', 'bf16'] as const
export type KvCodecName = (typeof KV_CODECS)[number]

/**
 * What an engine keeps K/V in, and `exportKv` gives: the bundle's precision, or bf16 where kernels would
 * round it to that in every run. Such rows are planes of the codec of the same name.
 */
export type KvPrecision = Precision | 'bf16'

/**
 * An encoded (rows, width) array is one or two planes, each (rows, its own width): what is cut into
 * pages by rows is cut in every plane.
 */
export type Plane = { readonly type: PlaneType; readonly width: number }
type PlaneType = 'float32' | 'float16' | 'bfloat16' | 'int8'

/** Largest value of int8; -128 stays unused, so that a sign flip is exact. */
const INT8_MAX = 127
const FLOAT16_MAX = 65_504
/** Below float16's smallest number: a row of zeros must not divide by zero. */
const SMALLEST_SCALE = 1e-12

export function planesOf(codec: KvCodecName, width: number): readonly Plane[] {
  switch (codec) {
    case 'fp32':
    case 'fp16':
    case 'bf16':
      return [{ type: TENSOR_TYPE[codec], width }]
    case 'int8':
      return [
        { type: 'float32', width: 1 },
        { type: 'int8', width },
      ]
  }
}

/** Bytes of one row of each plane, of arrays that are so wide. */
export function planeBytes(codec: KvCodecName, widths: readonly number[]): readonly number[] {
  const planes = widths.flatMap((width) => planesOf(codec, width))
  return planes.map(({ type, width }) => width * bytesOf(type))
}

const BYTES: Partial<Record<TensorType, number>> = { float32: 4, float16: 2, bfloat16: 2, int8: 1 }

/** Of one element. */
export function bytesOf(type: TensorType): number {
  const bytes = BYTES[type]
  if (bytes === undefined) throw new Error(`no K/V is of type ${type}`)
  return bytes
}

/**
 * An op of domain `peregrine` that kernels have which read K/V in bf16: float32 or float16 rounded to that.
 * ONNX Runtime's Cast takes 11 ms for 2,048 tokens of the paper's shape.
 */
export const TO_BF16 = 'HstuBf16'

export const TENSOR_TYPE = { fp32: 'float32', fp16: 'float16', bf16: 'bfloat16' } as const

/** `x` (rows, width) of the engine's precision to planes `plane.0`, `plane.1`. */
export function encoderGraph(codec: KvCodecName, precision: KvPrecision): Uint8Array {
  const from = TENSOR_TYPE[precision]
  return build('encode_kv', (g) => {
    const x = g.input('x', from, ['rows', 'width'])
    if (codec !== 'int8') {
      const to = TENSOR_TYPE[codec]
      // Beyond float16's range an infinity would make the scores no numbers.
      const inRange = codec === 'fp16' && from === 'float32' ? clip(g, x, FLOAT16_MAX) : x
      g.output('plane.0', castTo(g, inRange, to, from), to, ['rows', 'width'])
      return
    }
    const wide = castTo(g, x, 'float32', from)
    const largest = g.op('ReduceMax', [g.op('Abs', [wide]), g.ints([1])], {
      attributes: { keepdims: 1n },
    })
    const scale = g.op('Max', [
      g.op('Div', [largest, g.scalar(INT8_MAX, 'float32')]),
      g.scalar(SMALLEST_SCALE, 'float32'),
    ])
    const rounded = g.op('Round', [g.op('Div', [wide, scale])])
    g.output('plane.0', scale, 'float32', ['rows', 1])
    g.output('plane.1', castTo(g, rounded, 'int8'), 'int8', ['rows', 'width'])
  })
}

/**
 * The way back: the planes of `arrays` arrays, one after the other, to `x.<i>` of the engine's precision.
 * Where that is bf16 it needs kernels.
 */
export function decoderGraph(
  codec: KvCodecName,
  precision: KvPrecision,
  arrays: number,
): Uint8Array {
  const to = TENSOR_TYPE[precision]
  const planes = planesOf(codec, 1).length
  return build('decode_kv', (g) => {
    for (let i = 0; i < arrays; i++) {
      const plane = (p: number) => `plane.${i * planes + p}`
      // Rows and width of one array are not those of another.
      const [rows, width] = [`rows.${i}`, `width.${i}`]
      if (codec !== 'int8') {
        const from = TENSOR_TYPE[codec]
        const x = g.input(plane(0), from, [rows, width])
        g.output(`x.${i}`, castKv(g, x, to, from), to, [rows, width])
        continue
      }
      const scale = g.input(plane(0), 'float32', [rows, 1])
      const x = g.input(plane(1), 'int8', [rows, width])
      const wide = g.op('Mul', [castTo(g, x, 'float32'), scale])
      g.output(`x.${i}`, castKv(g, wide, to, 'float32'), to, [rows, width])
    }
  })
}

function castKv(g: NodeBuilder, x: string, to: TensorType, from: TensorType): string {
  if (to !== 'bfloat16' || from === to) return castTo(g, x, to, from)
  return g.op(TO_BF16, [x], { domain: 'peregrine' })
}

function clip(g: NodeBuilder, x: string, limit: number): string {
  return g.op('Clip', [x, g.scalar(-limit, 'float32'), g.scalar(limit, 'float32')])
}

function build(name: string, body: Parameters<typeof onnxGraph>[3]): Uint8Array {
  return onnxGraph(name, NO_WEIGHTS, [], body).bytes
}

const NO_WEIGHTS = {
  file: '',
  entry(name: string): never {
    throw new Error(`a codec has no weight ${name}`)
  },
}
