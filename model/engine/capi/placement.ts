import { RankError } from '../../errors.js'

/** Operators, as in `MatMul layer.0.q`, by the provider that runs them. */
export type Placement = ReadonlyMap<string, readonly string[]>

const CPU = 'CPUExecutionProvider'
/** What computes lengths and axes from shapes: a few numbers, which ONNX Runtime keeps on the CPU. */
const SHAPE_OPERATORS = new Set([
  'Add',
  'Cast',
  'Concat',
  'Constant',
  'Div',
  'Gather',
  'Mul',
  'Neg',
  'Range',
  'Reshape',
  'Shape',
  'Size',
  'Slice',
  'Squeeze',
  'Sub',
  'Unsqueeze',
])

/**
 * Holds a graph of a GPU's session to the GPU: one operator on the CPU moves its tensors over the bus
 * and back in every run.
 * @throws {RankError} MODEL_CONTRACT naming the operators that would run on the CPU
 */
export function checkOnGpu(file: string, placement: Placement): void {
  const types = (placement.get(CPU) ?? []).map((operator) => operator.split(' ')[0] ?? operator)
  const others = [...new Set(types)].filter((type) => !SHAPE_OPERATORS.has(type)).sort()
  if (others.length === 0) return
  throw new RankError(
    'MODEL_CONTRACT',
    `${file}: all but arithmetic on shapes must run on the GPU, got on the CPU: ${others.join(', ')}`,
  )
}
