import assert from 'node:assert/strict'
import { test } from 'node:test'
import { shortName } from './profile.js'
import { type KernelKind, kindOf, timeByKind } from './report-profile.js'

const NAMES: Readonly<Record<string, KernelKind>> = {
  nvjet_sm90_hsh_64x64_64x13_1x2_h_bz_NNT: 'matrix products',
  gemmk1_kernel: 'matrix products',
  Kernel2: 'matrix products',
  cutlass_80_tensorop_f16_s16816gemm: 'matrix products',
  sm90_xmma_gemm_f16f16: 'matrix products',
  _UnaryElementWise: 'elementwise',
  _BinaryElementWiseRhsPerChannelBatch1: 'elementwise',
  op_tensor_kernel_alpha2_zero: 'elementwise',
  cuApplyLayerNorm: 'norms and sums',
  SkipLayerNormKernelSmall: 'norms and sums',
  reduce_matrix_columns_kernel: 'norms and sums',
  _SplitKernelSameSplitDim: 'moves and fills',
  _GatherScatterElementsKernel: 'moves and fills',
  _PadNCHWInputWithPaddingAlongHAndWKernel: 'moves and fills',
  Transpose4DKernelParallelizeMultipleElementsPerThreadInInnermostDim: 'moves and fills',
  RangeKernel: 'moves and fills',
  attention: 'matrix products',
  linear: 'matrix products',
  gate: 'norms and sums',
  embed: 'moves and fills',
  unheard_of: 'other',
}

test('a kernel is counted by its name, an unknown one as other', () => {
  for (const [name, kind] of Object.entries(NAMES)) assert.equal(kindOf(name), kind, name)
})

test('a kernel has its name without namespaces, also unnamed ones', () => {
  const signatures = [
    'void hstu::<unnamed>::gate<(int)4, (bool)1>(HstuGateArgs)',
    'void hstu::(anonymous namespace)::gate<4, true>(HstuGateArgs)',
    'void hstu::gate<(int)4>(hstu::Args)',
    'gate',
  ]
  for (const signature of signatures) assert.equal(shortName(signature), 'gate', signature)
})

test('the kinds add up to the time of all kernels', () => {
  const kernels = Object.keys(NAMES).map((name, i) => ({ name, launches: 1, us: 2 ** i, bytes: 0 }))
  const sums = [...timeByKind(kernels).values()]
  assert.equal(
    sums.reduce((total, us) => total + us, 0),
    2 ** kernels.length - 1,
  )
})
