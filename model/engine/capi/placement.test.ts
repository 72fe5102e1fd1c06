import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { checkOnGpu } from './placement.js'

const GPU = 'CUDAExecutionProvider'
const CPU = 'CPUExecutionProvider'

describe('checkOnGpu', () => {
  test('takes a graph whose shapes alone are computed on the CPU', () => {
    const shapes = ['Squeeze a', 'Cast b', 'Neg c', 'Add ', 'Sub e', 'Concat f']
    checkOnGpu('score.onnx', new Map())
    checkOnGpu('score.onnx', new Map([[GPU, ['MatMul q', 'Softmax x']]]))
    checkOnGpu(
      'score.onnx',
      new Map([
        [CPU, shapes],
        [GPU, ['MatMul q']],
      ]),
    )
  })

  test('names every other operator on the CPU once, and none of the GPU’s', () => {
    const placement = new Map([
      [GPU, ['Sigmoid s', 'Shape t']],
      [CPU, ['MatMul q', 'Shape a', 'MatMul k', 'LayerNormalization n', 'HstuAttention']],
    ])
    assert.throws(() => checkOnGpu('b/score.onnx', placement), {
      code: 'MODEL_CONTRACT',
      message:
        'b/score.onnx: all but arithmetic on shapes must run on the GPU, got on the CPU: HstuAttention, LayerNormalization, MatMul',
    })
  })
})
