import type { FunctionProto } from 'onnx-buf'
import { onnxFunction } from './onnx.js'
import { silu } from './ops.js'

/** What stands behind the product of a linear layer. */
export type LinearForm = {
  readonly bias?: boolean
  /** SiLU of the sum. */
  readonly silu?: boolean
  /** Added last; not together with SiLU. */
  readonly residual?: boolean
}

/**
 * (x, weight, [bias], [residual]) -> SiLU(x·weight + bias) + residual, as far as the form has them:
 * (…, depth) -> (…, columns). The form is part of the name, because one name has one body in a graph.
 */
export function hstuLinear({ bias, silu: isSilu, residual }: LinearForm): FunctionProto {
  const parts = [bias && 'Bias', isSilu && 'Silu', residual && 'Residual']
  const name = `HstuLinear${parts.filter(Boolean).join('')}`
  const inputs = ['x', 'weight', ...(bias ? ['bias'] : []), ...(residual ? ['residual'] : [])]
  return onnxFunction(name, inputs, [], (f) => {
    let y = f.op('MatMul', ['x', 'weight'])
    if (bias) y = f.op('Add', [y, 'bias'])
    if (isSilu) y = silu(f, y)
    return residual ? f.op('Add', [y, 'residual']) : y
  })
}
