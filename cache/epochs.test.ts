import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createRandom } from '../model/random.js'
import { createEpochs } from './epochs.js'

describe('createEpochs', () => {
  test('what began before a key was forgotten is over, what begins after is not', () => {
    const epochs = createEpochs()
    const [before, also, other] = [epochs.begin('u'), epochs.begin('u'), epochs.begin('v')]
    epochs.forget('u')
    const after = epochs.begin('u')
    const current = () => [before, also, other, after].map((epoch) => epoch.isCurrent())
    assert.deepEqual(current(), [false, false, true, true])
    before.end()
    also.end()
    assert.deepEqual(current(), [false, false, true, true])
    epochs.forgetAll()
    assert.deepEqual(current(), [false, false, false, false])
    assert.ok(epochs.begin('u').isCurrent())
  })

  test('agrees with a list of everything that ever happened, in random order', () => {
    const random = createRandom(1)
    const below = (limit: number) => Math.floor(random() * limit)
    const epochs = createEpochs()
    const forgotten = new Map<string, number>()
    let open: { key: string; began: number; epoch: ReturnType<typeof epochs.begin> }[] = []
    for (let step = 1; step <= 5000; step++) {
      const key = `u${below(4)}`
      const kind = below(10)
      if (kind < 5) open.push({ key, began: step, epoch: epochs.begin(key) })
      else if (kind < 8) open.splice(below(open.length), 1)[0]?.epoch.end()
      else if (kind === 8) {
        epochs.forget(key)
        forgotten.set(key, step)
      } else if (below(10) === 0) {
        epochs.forgetAll()
        for (const each of ['u0', 'u1', 'u2', 'u3']) forgotten.set(each, step)
      }
      for (const each of open) {
        const expected = (forgotten.get(each.key) ?? 0) < each.began
        assert.equal(each.epoch.isCurrent(), expected, `step ${step}, seed 1`)
      }
      if (open.length > 50) {
        for (const { epoch } of open) epoch.end()
        open = []
      }
    }
  })
})
