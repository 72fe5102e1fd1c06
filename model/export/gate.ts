import type { FunctionProto } from 'onnx-buf'
import { type FunctionShape, splitUvqk } from './functions.js'
import type { NodeBuilder } from './nodes.js'
import { onnxFunction } from './onnx.js'
import { layerNorm, ones, silu } from './ops.js'

/**
 * How attention and gate meet: `gate` is u·LN(a); `concat` is [u, a, u·LN(a)].
 * (uvqk, a, [gamma, beta]) -> (tokens, [users,] H·dv or 3·H·dv). Attribute `act` says whether SiLU
 * is still to be applied to u, `concat` which of the two.
 */
export function hstuGate(shape: FunctionShape): FunctionProto {
  const inputs = ['uvqk', 'a', ...gateAffine(shape)]
  return onnxFunction('HstuGate', inputs, GATE_ATTRIBUTES, (f) => gated(f, 'uvqk', 'a', shape))
}

/** The same of (history, its a, candidates, their a, [gamma, beta]), a result each; in float16 alone. */
export function hstuGates(shape: FunctionShape): FunctionProto {
  const parts = [
    ['history', 'history_a'],
    ['candidates', 'candidate_a'],
  ] as const
  const inputs = [...parts.flat(), ...gateAffine(shape)]
  return onnxFunction('HstuGates', inputs, GATE_ATTRIBUTES, (f) =>
    parts.map(([uvqk, a]) => gated(f, uvqk, a, shape)),
  )
}

const GATE_ATTRIBUTES = ['act', 'concat', 'epsilon', 'num_heads', 'head_dim_v']

function gateAffine({ block }: FunctionShape): string[] {
  return block.normAttnAffine ? ['gamma', 'beta'] : []
}

function gated(f: NodeBuilder, uvqk: string, a: string, shape: FunctionShape): string {
  const { config, block, type } = shape
  const width = config.heads * config.dv
  // The attention's own split: ONNX Runtime finds the two equal and keeps one.
  let { u } = splitUvqk(f, uvqk, config)
  if (block.silu === 'u') u = silu(f, u)
  const affine = block.normAttnAffine ? gateAffine(shape) : [ones(f, width, type)]
  const product = f.op('Mul', [u, layerNorm(f, a, width, affine, type)])
  if (block.combine === 'gate') return product
  return f.op('Concat', [u, a, product], { attributes: { axis: -1n } })
}

export function gateAttributes({ config, block }: FunctionShape) {
  return {
    act: block.silu === 'u' ? 1n : 0n,
    concat: block.combine === 'concat' ? 1n : 0n,
    epsilon: config.layerNormEps,
    num_heads: BigInt(config.heads),
    head_dim_v: BigInt(config.dv),
  }
}
