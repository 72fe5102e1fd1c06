import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { predict, taskWeights, topK, valueScores } from './heads.js'
import { createRandom } from './random.js'

const TASKS = [
  { name: 'click', type: 'binary' },
  { name: 'seconds', type: 'regression' },
  { name: 'like', type: 'binary' },
] as const

describe('predict', () => {
  test('is the sigmoid of a binary logit, and a regression logit itself', () => {
    const [binary, regression] = TASKS
    assert.equal(predict(binary, 0), 0.5)
    assert.ok(Math.abs(predict(binary, 2) - 0.8807970779778823) < 1e-15)
    for (const logit of [-1000, -5, 3, 1000]) {
      const p = predict(binary, logit)
      assert.ok(p >= 0 && p <= 1)
      assert.ok(Math.abs(p + predict(binary, -logit) - 1) < 1e-15)
      assert.equal(predict(regression, logit), logit)
    }
  })
})

describe('taskWeights', () => {
  test('takes the request’s, else the bundle’s, else 1 each', () => {
    assert.deepEqual(taskWeights(TASKS, undefined, undefined), [1, 1, 1])
    assert.deepEqual(taskWeights(TASKS, { like: 2 }, undefined), [0, 0, 2])
    assert.deepEqual(taskWeights(TASKS, { like: 2 }, { click: 3, seconds: -1 }), [3, -1, 0])
    assert.throws(() => taskWeights(TASKS, { like: 2 }, {}), {
      code: 'INVALID_REQUEST',
      message: 'weights must name at least one task, got {}',
    })
  })

  test('refuses a name that is no task, inherited ones too, with its path', () => {
    for (const name of ['clicks', 'constructor', '__proto__', 'toString', '']) {
      const weights = JSON.parse(`{"click":1,${JSON.stringify(name)}:1}`)
      assert.throws(() => taskWeights(TASKS, undefined, weights), {
        code: 'INVALID_REQUEST',
        message: `weights must name tasks (click, seconds, like), got ${JSON.stringify(name)}`,
        path: `/weights/${name}`,
      })
    }
  })
})

describe('valueScores', () => {
  test('is the weighted sum of the predictions of each candidate', () => {
    const logits = Float32Array.of(0, 10, 1, -2, -4, 0)
    const sigmoid = (x: number) => 1 / (1 + Math.exp(-x))
    const scores = valueScores(logits, TASKS, [2, 0.5, -1])
    assert.equal(scores.length, 2)
    for (const [c, [click = 0, seconds = 0, like = 0]] of [
      [0, 10, 1],
      [-2, -4, 0],
    ].entries()) {
      const expected = 2 * sigmoid(click) + 0.5 * seconds - sigmoid(like)
      assert.ok(Math.abs((scores[c] ?? 0) - expected) < 1e-12)
    }
  })

  test('a task of weight 0 does not enter, whatever its logit', () => {
    const logits = Float32Array.of(0, Infinity, 1)
    assert.deepEqual([...valueScores(logits, TASKS, [2, 0, 0])], [1])
  })

  test('no candidates give no scores', () => {
    assert.deepEqual([...valueScores(new Float32Array(0), TASKS, [1, 1, 1])], [])
  })
})

describe('topK', () => {
  test('gives the k best with ties in request order, for all scores in 0..2, m <= 6 and k <= 7', () => {
    for (let m = 0; m <= 6; m++) {
      for (let code = 0; code < 3 ** m; code++) {
        const scores = Float64Array.from({ length: m }, (_, i) => Math.floor(code / 3 ** i) % 3)
        // Slow and plain: the best of what is left, the first one where equal.
        const left = [...scores.keys()]
        const order: number[] = []
        while (left.length > 0) {
          const best = Math.max(...left.map((i) => scores[i] ?? 0))
          const at = left.findIndex((i) => scores[i] === best)
          order.push(...left.splice(at, 1))
        }
        for (let k = 0; k <= 7; k++) {
          assert.deepEqual(topK(scores, k), order.slice(0, k), `scores ${scores}, k=${k}`)
        }
      }
    }
  })

  test('gives what sorting gives for 1,000 random scores, half of them there twice, and any k', () => {
    const random = createRandom(8)
    const scores = Float64Array.from({ length: 1000 }, () => Math.floor(1000 * random()) / 1000)
    const sorted = [...scores.keys()].sort((a, b) => (scores[b] ?? 0) - (scores[a] ?? 0) || a - b)
    for (const k of [0, 1, 2, 3, 10, 99, 100, 511, 998, 999, 1000, 1001]) {
      assert.deepEqual(topK(scores, k), sorted.slice(0, k), `k=${k}`)
    }
  })

  test('does not change the scores', () => {
    const scores = Float64Array.of(1, 3, 2)
    topK(scores, 2)
    assert.deepEqual([...scores], [1, 3, 2])
  })
})
