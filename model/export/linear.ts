import type { FunctionProto } from 'onnx-buf'
import type { HstuConfig } from '../config.js'
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

/**
 * (history, candidates, weight, [bias]) -> k and v of the history, uvqk of the candidates: what the last layer
 * reads. The history's columns are cut out of the weights when a session loads the graph; a kernel skips the others.
 */
export function hstuLastLinears(
  form: Omit<LinearForm, 'residual'>,
  config: HstuConfig,
): FunctionProto {
  const inputs = ['history', 'candidates', 'weight', ...(form.bias ? ['bias'] : [])]
  const attributes = ['num_heads', 'head_dim_qk', 'head_dim_v']
  return onnxFunction(nameOf('HstuLastLinears', form), inputs, attributes, (f) => {
    const part = ([start, end]: readonly [number, number]) => {
      const cut = (whole: string) =>
        f.op('Slice', [whole, f.ints([start]), f.ints([end]), f.ints([-1])])
      const weights = { weight: cut('weight'), bias: form.bias ? cut('bias') : '' }
      return linear(f, 'history', form, weights)
    }
    const { k, v } = kvColumns(config)
    return [part(k), part(v), linear(f, 'candidates', form)]
  })
}

/** First column and the one behind the last, of k and v in uvqk. */
export function kvColumns({ heads, dqk, dv }: HstuConfig) {
  const width = 2 * heads * (dqk + dv)
  return { k: [width - heads * dqk, width], v: [heads * dv, 2 * heads * dv] } as const
}

function nameOf(name: string, { bias, silu: isSilu, residual }: LinearForm): string {
  return [name, bias && 'Bias', isSilu && 'Silu', residual && 'Residual'].filter(Boolean).join('')
}

function linear(
  f: NodeBuilder,
  x: string,
  { bias, silu: isSilu, residual }: LinearForm,
  parameters = { weight: 'weight', bias: 'bias' },
): string {
  let y = f.op('MatMul', [x, parameters.weight])
  if (bias) y = f.op('Add', [y, parameters.bias])
  if (isSilu) y = silu(f, y)
  return residual ? f.op('Add', [y, 'residual']) : y
}
