import type { FunctionProto } from 'onnx-buf'
import type { NodeBuilder } from './nodes.js'
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
export function hstuLinear(form: LinearForm): FunctionProto {
  const inputs = [
    'x',
    'weight',
    ...(form.bias ? ['bias'] : []),
    ...(form.residual ? ['residual'] : []),
  ]
  return onnxFunction(nameOf('HstuLinear', form), inputs, [], (f) => linear(f, 'x', form))
}

/**
 * (history, candidates, weight, [bias]) -> the same of both rows, a result each: a kernel takes one launch for
 * what the body computes one after the other.
 */
export function hstuLinears(form: Omit<LinearForm, 'residual'>): FunctionProto {
  const inputs = ['history', 'candidates', 'weight', ...(form.bias ? ['bias'] : [])]
  return onnxFunction(nameOf('HstuLinears', form), inputs, [], (f) =>
    ['history', 'candidates'].map((x) => linear(f, x, form)),
  )
}

function nameOf(name: string, { bias, silu: isSilu, residual }: LinearForm): string {
  return [name, bias && 'Bias', isSilu && 'Silu', residual && 'Residual'].filter(Boolean).join('')
}

function linear(f: NodeBuilder, x: string, { bias, silu: isSilu, residual }: LinearForm): string {
  let y = f.op('MatMul', [x, 'weight'])
  if (bias) y = f.op('Add', [y, 'bias'])
  if (isSilu) y = silu(f, y)
  return residual ? f.op('Add', [y, 'residual']) : y
}
