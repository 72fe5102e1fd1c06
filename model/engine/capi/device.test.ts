import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { onlyVisible, showOnly } from './device.js'

describe('onlyVisible', () => {
  test('is the device itself where nothing is hidden', () => {
    for (let id = 0; id < 16; id++) assert.equal(onlyVisible(undefined, id), String(id))
  })

  test('counts among the devices that are visible', () => {
    const lists = ['', '0', '3', '1,0', '2,5,7', 'GPU-8932f937,MIG-4b1a', '0,1,2,3,4,5,6,7']
    for (const visible of lists) {
      const devices = visible.split(',')
      for (let id = 0; id < 10; id++) {
        if (id < devices.length) assert.equal(onlyVisible(visible, id), devices[id])
        else {
          assert.throws(() => onlyVisible(visible, id), {
            code: 'ENGINE_UNAVAILABLE',
            message: `no CUDA device ${id}: expected an index into CUDA_VISIBLE_DEVICES, which is ${visible}`,
          })
        }
      }
    }
  })
})

test('a process keeps its one device: it may be asked for again, another may not', (t) => {
  const { CUDA_VISIBLE_DEVICES: before } = process.env
  t.after(() => {
    if (before === undefined) delete process.env.CUDA_VISIBLE_DEVICES
    else process.env.CUDA_VISIBLE_DEVICES = before
  })
  process.env.CUDA_VISIBLE_DEVICES = '4,6'
  showOnly(1)
  showOnly(1)
  assert.equal(process.env.CUDA_VISIBLE_DEVICES, '6')
  assert.throws(() => showOnly(0), { code: 'ENGINE_UNAVAILABLE', message: /device 1 .+ got 0/ })
  assert.equal(process.env.CUDA_VISIBLE_DEVICES, '6')
})
