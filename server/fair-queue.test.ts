import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { type Claim, createFairQueue, type Priority } from './fair-queue.js'

const claim = (priority: Priority, key = 'k', workMs = 5, share = 1): Claim => ({
  ...{ priority, key, share, workMs },
})

/** Work of the first `count` items taken, by what `name` calls them. */
function servedBy(claims: readonly Claim[], count: number, name: (claim: Claim) => string) {
  const queue = createFairQueue<Claim>()
  for (const each of claims) queue.push(each)
  const sums: { [name: string]: number } = {}
  for (let i = 0; i < count; i++) {
    const item = queue.shift()
    assert.ok(item !== undefined)
    sums[name(item)] = (sums[name(item)] ?? 0) + item.workMs
  }
  return sums
}

describe('createFairQueue', () => {
  test('priorities share 16 to 4 to 1, and low ones never stand still', () => {
    const claims = (['low', 'normal', 'high'] as const).flatMap((priority) =>
      Array.from({ length: 210 }, () => claim(priority)),
    )
    const { high, normal, low } = servedBy(claims, 210, ({ priority }) => priority)
    assert.deepEqual({ high, normal, low }, { high: 800, normal: 200, low: 50 })
  })

  test('keys share by weight within their priority, and not across', () => {
    const many = (each: Claim) => Array.from({ length: 100 }, () => each)
    const claims = [
      ...many(claim('normal', 'a', 5, 3)),
      ...many(claim('normal', 'b', 5, 1)),
      ...many(claim('high', 'c', 5, 1)),
    ]
    const served = servedBy(claims, 100, ({ key }) => key)
    assert.deepEqual(served, { a: 75, b: 25, c: 400 })
  })

  test('of one key first come, first served', () => {
    const queue = createFairQueue<Claim & { readonly i: number }>()
    for (let i = 0; i < 20; i++) queue.push({ ...claim('normal', 'k', 1 + (i % 7)), i })
    const order = Array.from({ length: 20 }, () => queue.shift()?.i)
    assert.deepEqual(order, [...order.keys()])
    assert.equal(queue.shift(), undefined)
  })

  test('what is removed is not taken, and not counted', () => {
    const queue = createFairQueue<Claim>()
    const [a, b] = [claim('normal'), claim('low')]
    queue.push(a)
    queue.push(b)
    assert.equal(queue.remove(a), true)
    assert.equal(queue.remove(a), false)
    assert.equal(queue.length(), 1)
    assert.deepEqual(queue.of('normal'), { length: 0, workMs: 0 })
    assert.deepEqual(queue.of('low'), { length: 1, workMs: 5 })
    assert.equal(queue.shift(), b)
    assert.equal(queue.length(), 0)
  })

  test('the backlog before a request is its own, and of the others what comes before it', () => {
    const queue = createFairQueue<Claim>()
    for (let i = 0; i < 100; i++) queue.push(claim('normal', 'flood'))
    assert.equal(queue.aheadMs(claim('normal', 'flood')), 500)
    assert.equal(queue.aheadMs(claim('normal', 'quiet')), 5)
    assert.equal(queue.aheadMs(claim('normal', 'quiet', 5, 10)), 0.5)
    assert.equal(queue.aheadMs(claim('high', 'flood')), 1.25)
    assert.equal(queue.aheadMs(claim('low', 'flood')), 20)
  })
})
