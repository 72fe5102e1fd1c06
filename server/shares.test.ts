import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createRandom } from '../model/random.js'
import { createShares } from './shares.js'

/** Shares over lists of work, which `serve` takes from. */
function queues(weights: { readonly [name: string]: number }) {
  const shares = createShares<string>()
  const work = new Map<string, number[]>()
  return {
    shares,
    push(name: string, ms: number): void {
      shares.arrive(name, weights[name] ?? 1, ms)
      work.set(name, [...(work.get(name) ?? []), ms])
    },
    serve(): string {
      const name = shares.next((each) => work.get(each)?.[0] ?? 0) ?? ''
      shares.serve(name, work.get(name)?.shift() ?? 0)
      return name
    },
    ahead: (name: string, ms: number) =>
      shares.aheadMs(name, weights[name] ?? 1, ms, shares.workMs(name)),
  }
}

describe('createShares', () => {
  test('serves backlogs in proportion to weights, whatever the sizes of the pieces', () => {
    const weights = { a: 3, b: 1, c: 2 }
    const { push, serve, shares } = queues(weights)
    const random = createRandom(1)
    const names = Object.keys(weights)
    for (const name of names) for (let i = 0; i < 3000; i++) push(name, 1 + 20 * random())
    const before = new Map(names.map((name) => [name, shares.workMs(name)]))
    for (let i = 0; i < 3000; i++) serve()
    const served = names.map((name) => (before.get(name) ?? 0) - shares.workMs(name))
    const [a = 0, b = 0, c = 0] = served
    assert.ok(Math.abs(a / b - 3) < 0.05, `${a} / ${b}`)
    assert.ok(Math.abs(c / b - 2) < 0.05, `${c} / ${b}`)
  })

  test('a newcomer comes before the backlog of another, but not again and again', () => {
    const { push, serve } = queues({})
    for (let i = 0; i < 10; i++) push('flood', 5)
    serve()
    push('quiet', 5)
    push('quiet', 5)
    const order = Array.from({ length: 5 }, serve)
    assert.deepEqual(order.slice(0, 4).toSorted(), ['flood', 'flood', 'quiet', 'quiet'])
    assert.ok(order.indexOf('quiet') <= 1)
  })

  test('what leaves costs its flow nothing', () => {
    const { shares, serve, push } = queues({})
    push('a', 5)
    shares.arrive('b', 1, 100)
    shares.leave('b', 100)
    assert.equal(serve(), 'a')
    assert.equal(
      shares.next(() => 0),
      undefined,
    )
    assert.equal(shares.workMs('b'), 0)
  })

  test('says how much work comes before a new piece, if nobody else arrives', () => {
    const weights = { a: 1, b: 2, c: 0.5 }
    const random = createRandom(3)
    for (let round = 0; round < 50; round++) {
      const { push, serve, ahead, shares } = queues(weights)
      for (const name of ['a', 'b', 'c']) {
        const count = Math.floor(8 * random())
        for (let i = 0; i < count; i++) push(name, 10)
      }
      for (let i = 0; i < 3 && shares.next(() => 0) !== undefined; i++) serve()
      const predicted = ahead('a', 10)
      push('a', 10)
      let before = 0
      let left = shares.waiting('a')
      while (left > 0) {
        const name = serve()
        if (name === 'a') left--
        before += left === 0 && name === 'a' ? 0 : 10
      }
      // Pieces are whole: one of each other flow more or less.
      assert.ok(Math.abs(before - predicted) <= 20, `${before} ms, predicted ${predicted}`)
    }
  })
})
