import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { Priority } from './fair-queue.js'
import { createLoopQueue, type Owner } from './loop-queue.js'

/** What would wait longer is refused, as the admission does. */
const MOST_WAIT_MS = 100
const BYTES = 16_000
/** Of what is refused. */
const REFUSAL_MS = 0.05

/** A loop on a clock of its own. */
function simulation() {
  let clock = 1000
  let immediates: (() => void)[] = []
  const ticks: (() => void)[] = []
  const queue = createLoopQueue({
    maxBodyBytes: 1e6,
    now: () => clock,
    afterSockets: (callback) => void immediates.push(callback),
    afterThis: (callback) => void ticks.push(callback),
  })
  const counts = new Map<string, { in: number; out: number; waitedMs: number[] }>()
  const countOf = ({ priority, key }: Owner) => {
    const name = `${priority} ${key}`
    const own = counts.get(name) ?? { in: 0, out: 0, waitedMs: [] }
    counts.set(name, own)
    return own
  }
  const drain = () => {
    for (let tick = ticks.shift(); tick !== undefined; tick = ticks.shift()) tick()
  }
  return {
    queue,
    counts,
    now: () => clock,
    arrive(owner: Owner, taskMs: number, bytes = BYTES): void {
      const own = countOf(owner)
      if (queue.waitMs(owner, bytes) > MOST_WAIT_MS) {
        own.out++
        clock += REFUSAL_MS
        return
      }
      own.in++
      const since = clock
      queue.run(owner, bytes, () => {
        own.waitedMs.push(clock - since)
        clock += taskMs
      })
    },
    /** What waits for the sockets to be read; returns how long it took. */
    slice(): number {
      const began = clock
      const due = immediates
      immediates = []
      for (const callback of due) {
        try {
          callback()
        } finally {
          drain()
        }
      }
      return clock - began
    },
    rest(ms: number): void {
      clock += ms
    },
  }
}

const owner = (key: string, share = 1, priority: Priority = 'normal'): Owner => ({
  ...{ key, share, priority },
})

/** Turns for `ms`: to each come those that came during the one before, by requests per millisecond. */
function offered(
  sim: ReturnType<typeof simulation>,
  ms: number,
  flows: readonly (readonly [Owner, perMs: number])[],
  taskMs = 1,
): number[] {
  const took: number[] = []
  const owed = flows.map(() => 0)
  const end = sim.now() + ms
  for (let last = 0.1; sim.now() < end; ) {
    const began = sim.now()
    flows.forEach(([one, perMs], i) => {
      const due = (owed[i] ?? 0) + perMs * last
      owed[i] = due - Math.floor(due)
      for (let n = 0; n < Math.floor(due); n++) sim.arrive(one, taskMs)
    })
    sim.slice()
    if (sim.now() === began) sim.rest(0.1)
    last = sim.now() - began
    took.push(last)
  }
  return took
}

/** Of what was let in. */
function shareOf({ counts }: ReturnType<typeof simulation>, name: string): number {
  const all = [...counts.values()].reduce((sum, each) => sum + each.in, 0)
  return (counts.get(name)?.in ?? 0) / all
}

describe('the queue for the event loop', () => {
  test('keeps turns short at three times what the loop can do, and the loop busy', () => {
    const sim = simulation()
    const took = offered(sim, 10_000, [[owner('k'), 3]])
    assert.ok(Math.max(...took) < 2, `${Math.max(...took)} ms`)
    const { in: passed = 0, out = 0, waitedMs = [] } = sim.counts.get('normal k') ?? {}
    assert.ok(passed * 1 + out * REFUSAL_MS > 0.98 * 10_000, `${passed} in 10 s`)
    // How fast bodies go is learnt from them: here a sixth of what they are taken for.
    const settled = waitedMs.slice(waitedMs.length / 4)
    const most = Math.max(...settled)
    assert.ok(most > 0.8 * MOST_WAIT_MS && most < 1.2 * MOST_WAIT_MS, `${most} ms`)
  })

  test('does what comes alone in the next gap', () => {
    const sim = simulation()
    offered(sim, 1000, [[owner('k'), 0.4]])
    assert.deepEqual(new Set(sim.counts.get('normal k')?.waitedMs), new Set([0]))
  })

  test('does several small ones in one turn', () => {
    const sim = simulation()
    for (let i = 0; i < 20; i++) sim.arrive(owner('k'), 0.125)
    assert.equal(sim.slice(), 0.25)
    assert.equal(sim.counts.get('normal k')?.waitedMs.length, 2)
  })

  test('lets a pause be caught up with', () => {
    const sim = simulation()
    sim.arrive(owner('k'), 400)
    sim.slice()
    for (let i = 0; i < 60; i++) sim.arrive(owner('k'), 1)
    assert.equal(sim.counts.get('normal k')?.out, 0)
  })

  test('lets in what comes slower than it goes, however large it is', () => {
    const sim = simulation()
    offered(sim, 10_000, [[owner('k'), 0.02]], 40)
    assert.equal(sim.counts.get('normal k')?.out, 0)
  })

  test('is over as soon as it is caught up with', () => {
    const sim = simulation()
    offered(sim, 5000, [[owner('k'), 3]])
    offered(sim, 300, [[owner('k'), 0.5]])
    sim.counts.clear()
    offered(sim, 5000, [[owner('k'), 0.5]])
    assert.equal(sim.counts.get('normal k')?.out, 0)
  })

  test('forgets a time when all went slowly', () => {
    const sim = simulation()
    offered(sim, 30_000, [[owner('k'), 3]], 40)
    offered(sim, 3000, [[owner('k'), 0.1]], 1)
    sim.counts.clear()
    for (let i = 0; i < 60; i++) sim.arrive(owner('k'), 1)
    assert.equal(sim.counts.get('normal k')?.out, 0)
  })

  test('goes on after a task that fails', () => {
    const sim = simulation()
    sim.queue.run(owner('k'), 0, () => {
      throw new Error('no task')
    })
    assert.throws(() => sim.slice(), /no task/)
    sim.arrive(owner('k'), 1)
    for (let i = 0; i < 3; i++) sim.slice()
    assert.equal(sim.counts.get('normal k')?.waitedMs.length, 1)
  })

  test('never refuses a key that asks for less than its share, nor lets it wait', () => {
    const sim = simulation()
    offered(sim, 5000, [
      [owner('flood'), 3],
      [owner('quiet'), 0.2],
    ])
    const { out, waitedMs = [] } = sim.counts.get('normal quiet') ?? {}
    assert.equal(out, 0)
    assert.ok(Math.max(...waitedMs) < 5, `${Math.max(...waitedMs)} ms`)
    assert.ok((sim.counts.get('normal flood')?.out ?? 0) > 0)
  })

  test('counts what has come, not what headers promised', () => {
    const sim = simulation()
    offered(sim, 5000, [[owner('flood'), 3]])
    const before = sim.queue.waitMs(owner('flood'), BYTES)
    for (let i = 0; i < 100; i++) {
      assert.ok(sim.queue.waitMs(owner('bogus', 1, 'high'), 1e15) <= MOST_WAIT_MS)
    }
    assert.equal(sim.queue.waitMs(owner('flood'), BYTES), before)
  })

  test('gives keys that all want more what their shares say', () => {
    const sim = simulation()
    offered(sim, 10_000, [
      [owner('one', 1), 2],
      [owner('three', 3), 1.5],
    ])
    const share = shareOf(sim, 'normal three')
    assert.ok(Math.abs(share - 0.75) < 0.03, `${share} of 0.75`)
  })

  test('keeps priorities apart: high ones pass while low ones flood', () => {
    const sim = simulation()
    offered(sim, 5000, [
      [owner('k', 1, 'low'), 3],
      [owner('k', 1, 'high'), 0.6],
    ])
    assert.equal(sim.counts.get('high k')?.out, 0)
    assert.ok(shareOf(sim, 'low k') > 0.2, 'low ones do not stand still')
  })
})
