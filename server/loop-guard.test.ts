import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { Claim, Priority } from './fair-queue.js'
import { createLoopGuard } from './loop-guard.js'

/** A loop on a clock of its own: what is let in takes `workMs`, what is refused a tenth of one. */
function simulation() {
  let clock = 1000
  let idle = 0
  let ends: (() => void)[] = []
  const guard = createLoopGuard({
    now: () => clock,
    idleMs: () => idle,
    afterTurn: (callback) => void ends.push(callback),
  })
  const counts = new Map<string, { in: number; out: number }>()
  return {
    guard,
    counts,
    /** One turn over what has come meanwhile; resolves how long it took. */
    turn(claims: readonly Claim[]): number {
      const began = clock
      for (const claim of claims) {
        const name = `${claim.priority} ${claim.key}`
        const own = counts.get(name) ?? { in: 0, out: 0 }
        counts.set(name, own)
        if (guard.refuses(claim)) {
          own.out++
          clock += 0.05
        } else {
          own.in++
          guard.passed()
          guard.read(claim)
          clock += claim.workMs
        }
      }
      for (const end of ends) end()
      ends = []
      return clock - began
    },
    rest(ms: number): void {
      clock += ms
      idle += ms
    },
  }
}

const claim = (key: string, share = 1, priority: Priority = 'normal', workMs = 1): Claim => ({
  ...{ key, share, priority, workMs },
})

/** Turns for `ms`: to each come those that came during the one before, by requests per millisecond. */
function offered(
  sim: ReturnType<typeof simulation>,
  ms: number,
  flows: readonly (readonly [Claim, perMs: number])[],
): number[] {
  const took: number[] = []
  const owed = flows.map(() => 0)
  let last = 1
  for (let spent = 0; spent < ms; spent += last) {
    const claims = flows.flatMap(([one, perMs], i) => {
      const due = (owed[i] ?? 0) + perMs * last
      owed[i] = due - Math.floor(due)
      return Array<Claim>(Math.floor(due)).fill(one)
    })
    last = sim.turn(claims)
    took.push(last)
    if (claims.length > 0 && last > 0) continue
    sim.rest(1)
    last = 1
  }
  return took
}

/** Of what was let in. */
function shareOf({ counts }: ReturnType<typeof simulation>, name: string): number {
  const all = [...counts.values()].reduce((sum, each) => sum + each.in, 0)
  return (counts.get(name)?.in ?? 0) / all
}

describe('the guard of the event loop', () => {
  test('keeps turns short at three times what the loop can do, and the loop busy', () => {
    const sim = simulation()
    offered(sim, 1000, [[claim('k'), 3]])
    assert.ok(sim.guard.isBehind())
    sim.counts.clear()
    const took = offered(sim, 5000, [[claim('k'), 3]])
    assert.ok(Math.max(...took) < 6, `${Math.max(...took)} ms`)
    const { in: passed = 0 } = sim.counts.get('normal k') ?? {}
    // Nine in ten of what it could do if refusing cost nothing.
    assert.ok(passed > 0.85 * 5000, `${passed} in 5 s`)
  })

  test('lets a pause be caught up with', () => {
    const sim = simulation()
    sim.turn([claim('k', 1, 'normal', 400)])
    sim.turn(Array<Claim>(60).fill(claim('k')))
    sim.turn(Array<Claim>(10).fill(claim('k')))
    sim.rest(1)
    assert.equal(sim.counts.get('normal k')?.out, 0)
    assert.ok(!sim.guard.isBehind())
  })

  test('lets the few large ones in that keep the loop busy', () => {
    const sim = simulation()
    const large = claim('k', 1, 'normal', 20)
    for (let i = 0; i < 100; i++) sim.turn([large, large, large])
    assert.equal(sim.counts.get('normal k')?.out, 0)
  })

  test('is over when the loop is idle again', () => {
    const sim = simulation()
    offered(sim, 1000, [[claim('k'), 3]])
    sim.counts.clear()
    offered(sim, 300, [[claim('k'), 0.5]])
    sim.counts.clear()
    offered(sim, 2000, [[claim('k'), 0.5]])
    assert.ok(!sim.guard.isBehind())
    assert.equal(sim.counts.get('normal k')?.out, 0)
  })

  test('never refuses a key that asks for less than its share', () => {
    const sim = simulation()
    const flows = [
      [claim('flood'), 3],
      [claim('quiet'), 0.2],
    ] as const
    offered(sim, 1000, flows)
    sim.counts.clear()
    offered(sim, 5000, flows)
    assert.equal(sim.counts.get('normal quiet')?.out, 0)
    assert.ok((sim.counts.get('normal flood')?.out ?? 0) > 0)
  })

  test('counts for a share what has come, not what headers promised', () => {
    const sim = simulation()
    offered(sim, 1000, [[claim('flood'), 3]])
    for (let i = 0; i < 10; i++) {
      assert.ok(!sim.guard.refuses(claim('bogus', 1, 'high', 5000)))
      sim.guard.passed()
      const took = offered(sim, 200, [[claim('flood'), 3]])
      assert.ok(Math.max(...took) < 6, `${Math.max(...took)} ms`)
    }
  })

  test('gives keys that all want more what their shares say', () => {
    const sim = simulation()
    const flows = [
      [claim('one', 1), 2],
      [claim('three', 3), 1.5],
    ] as const
    offered(sim, 1000, flows)
    sim.counts.clear()
    offered(sim, 10_000, flows)
    const share = shareOf(sim, 'normal three')
    assert.ok(share > 0.75 * 0.85 && share < 0.75 * 1.1, `${share} of 0.75`)
  })

  test('keeps priorities apart: high ones pass while low ones flood', () => {
    const sim = simulation()
    const flows = [
      [claim('k', 1, 'low'), 3],
      [claim('k', 1, 'high'), 0.6],
    ] as const
    offered(sim, 1000, flows)
    sim.counts.clear()
    offered(sim, 5000, flows)
    assert.equal(sim.counts.get('high k')?.out, 0)
    assert.ok(shareOf(sim, 'low k') > 0.05, 'low ones do not stand still')
  })
})
