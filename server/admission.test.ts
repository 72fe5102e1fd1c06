import assert from 'node:assert/strict'
import { describe, mock, test } from 'node:test'
import { createRandom } from '../model/random.js'
import { type AdmissionOptions, type Caller, createAdmission, type Job } from './admission.js'
import type { Priority } from './fair-queue.js'

const ONE: Caller = { name: 'k', share: 1 }

/** An engine of two runs at a time, on a clock of its own: work takes what it says, times `slowness`. */
function simulation(changes: Partial<AdmissionOptions> = {}, slowness = 1) {
  let clock = 0
  const agenda: { at: number; what: () => void }[] = []
  const log: string[] = []
  const waits: { [priority: string]: number[] } = { high: [], normal: [], low: [] }
  const admission = createAdmission({
    maxQueueMs: 100,
    depth: () => ({ runs: 2, requests: 2 }),
    now: () => clock,
    on: {
      waited: (priority, ms) => void waits[priority]?.push(ms),
      refused: (reason) => void log.push(reason),
      worked() {},
    },
    ...changes,
  })
  const at = (ms: number, what: () => void) => {
    let place = agenda.length
    while (place > 0 && (agenda[place - 1]?.at ?? 0) > ms) place--
    agenda.splice(place, 0, { at: ms, what })
  }
  /** What was promised by now has happened. */
  const settled = () => new Promise<void>((resolve) => setImmediate(resolve))
  return {
    admission,
    refusals: log,
    waits,
    at,
    now: () => clock,
    /** Asks as a request does; resolves with what became of it. */
    async ask(job: Partial<Job> & { readonly workMs: number }) {
      const whole: Job = { caller: ONE, priority: 'normal', startMs: clock, ...job }
      const asked = clock
      try {
        admission.check(whole, true)
        const waitedMs = await admission.run(whole, (waited) => {
          return new Promise<number>((resolve) => {
            at(clock + job.workMs * slowness, () => resolve(waited))
          })
        })
        return { code: 'done', waitedMs, ms: clock - asked }
      } catch (error) {
        const { code, retryAfterMs } = error as { code: string; retryAfterMs?: number }
        return { code, retryAfterMs, ms: clock - asked }
      }
    },
    /** Lets time pass, event by event. */
    async until(end: number): Promise<void> {
      for (;;) {
        await settled()
        const next = agenda[0]
        if (next === undefined || next.at > end) break
        agenda.shift()
        clock = Math.max(clock, next.at)
        next.what()
      }
      clock = end
    },
  }
}

type Simulation = ReturnType<typeof simulation>

/** Poisson arrivals of `job` until `end`; what became of each. */
function arrivals(
  sim: Simulation,
  seed: number,
  perSec: number,
  end: number,
  job: Partial<Job> & { readonly workMs: number },
) {
  const random = createRandom(seed)
  const results: ReturnType<Simulation['ask']>[] = []
  for (let ms = 0; ms < end; ms += (-Math.log(1 - random()) / perSec) * 1000) {
    sim.at(ms, () => void results.push(sim.ask(job)))
  }
  return async () => Promise.all(results)
}

type Result = Awaited<ReturnType<Simulation['ask']>>
const done = (results: readonly Result[]) => results.filter(({ code }) => code === 'done')
const p99 = (results: readonly Result[]) =>
  done(results)
    .map(({ ms }) => ms)
    .toSorted((a, b) => a - b)[Math.floor(0.99 * done(results).length)] ?? Number.NaN

describe('admission', () => {
  test('at once while the engine has room, then by turns', async () => {
    const sim = simulation()
    const order: string[] = []
    const asked = ['a', 'b', 'c', 'd'].map(async (name) => {
      await sim.ask({ workMs: 10 })
      order.push(`${name} at ${sim.now()}`)
    })
    assert.equal(sim.admission.stats().queued.normal.length, 2)
    assert.equal(sim.admission.stats().queued.normal.workMs, 20)
    assert.equal(sim.admission.inFlight(), 4)
    await sim.until(100)
    await Promise.all(asked)
    assert.deepEqual(order, ['a at 10', 'b at 10', 'c at 20', 'd at 20'])
    assert.equal(sim.admission.inFlight(), 0)
  })

  for (const slowness of [0.5, 1, 4]) {
    test(`at three times the capacity, predictions off by ${slowness}: all of the capacity, and no wait beyond the bound`, async () => {
      const sim = simulation({}, slowness)
      // 2 runs at a time of 5 ms: 400 a second, where predictions hold.
      const results = arrivals(sim, 1, 1200 / slowness, 8000, { workMs: 5 })
      await sim.until(9000)
      const all = await results()
      const perSec = done(all).length / 8
      assert.ok(perSec >= 0.97 * (400 / slowness), `${perSec} a second`)
      // The first of all are let in by predictions that nobody has measured yet.
      assert.ok(p99(all.slice(all.length / 4)) <= 125, `p99 ${p99(all)} ms`)
      for (const { code, ms, retryAfterMs } of all) {
        if (code === 'done') continue
        assert.equal(code, 'OVERLOADED')
        assert.equal(ms, 0, 'refused at once')
        assert.ok(Number(retryAfterMs) >= 1)
      }
    })
  }

  test('counts work, not requests: one large request is let in where many small ones are', async () => {
    const sim = simulation()
    const large = Array.from({ length: 40 }, () => sim.ask({ workMs: 100 }))
    await sim.until(0)
    assert.equal(sim.refusals.length, 40 - 2 - 3, 'two run, and at most 100 ms wait for each run')
    const small = simulation()
    const all = Array.from({ length: 40 }, () => small.ask({ workMs: 5 }))
    await small.until(0)
    assert.equal(small.refusals.length, 0)
    await sim.until(1000)
    await small.until(1000)
    assert.equal(done(await Promise.all([...large, ...all])).length, 45)
  })

  test('however large, a request that waits for nobody is let in', async () => {
    const sim = simulation({ maxQueueMs: 1 })
    const result = sim.ask({ workMs: 10_000, deadlineMs: 50 })
    await sim.until(10_000)
    assert.equal((await result).code, 'done')
  })

  test('what would pass its deadline is refused at once, and told when it would not', async () => {
    const sim = simulation()
    const busy = Array.from({ length: 10 }, () => sim.ask({ workMs: 20 }))
    const late = await sim.ask({ workMs: 20, deadlineMs: 60 })
    assert.deepEqual([late.code, late.ms, sim.refusals], ['OVERLOADED', 0, ['deadline']])
    assert.ok(Number(late.retryAfterMs) > 0 && Number(late.retryAfterMs) <= 80)
    const inTime = sim.ask({ workMs: 20, deadlineMs: 130 })
    const partial = sim.ask({ workMs: 80, deadlineMs: 110, partial: true })
    await sim.until(1000)
    assert.equal((await inTime).code, 'done')
    assert.equal((await partial).code, 'done', 'let in for what can be scored by then')
    await Promise.all(busy)
  })

  test('what is late when its turn comes is dropped, and makes nobody else late', async () => {
    const sim = simulation({}, 3) // all takes three times as long as it should
    const asked = Array.from({ length: 12 }, () => sim.ask({ workMs: 10, deadlineMs: 70 }))
    await sim.until(1000)
    const results = await Promise.all(asked)
    const codes = new Set(results.map(({ code }) => code))
    assert.ok(codes.has('DEADLINE_EXCEEDED'))
    for (const { code, ms } of results) if (code === 'done') assert.ok(ms <= 90, `${ms} ms`)
    assert.equal(sim.admission.inFlight(), 0)
  })

  test('a deadline that passes in the queue ends the wait then, and a partial answer is due then', async (t) => {
    t.mock.timers.enable({ apis: ['setTimeout'] })
    const sim = simulation()
    const busy = [sim.ask({ workMs: 500 }), sim.ask({ workMs: 500 })]
    const job: Job = { caller: ONE, priority: 'normal', startMs: 0, workMs: 1, deadlineMs: 50 }
    const late = assert.rejects(
      sim.admission.run(job, async () => {}),
      { code: 'DEADLINE_EXCEEDED', message: /^deadlineMs 50 passed/ },
    )
    const partial = sim.admission.run({ ...job, partial: true }, async () => 'what there is')
    t.mock.timers.tick(50)
    await late
    assert.equal(await partial, 'what there is')
    assert.equal(sim.admission.stats().queued.normal.length, 0)
    await sim.until(1000)
    await Promise.all(busy)
    assert.equal(sim.admission.stats().running, 0)
  })

  test('who leaves the queue does no work, and takes nobody’s turn', async () => {
    const sim = simulation()
    const controller = new AbortController()
    const busy = [sim.ask({ workMs: 10 }), sim.ask({ workMs: 10 })]
    const work = mock.fn(async () => {})
    const job: Job = { caller: ONE, priority: 'normal', startMs: 0, workMs: 10 }
    const left = sim.admission.run({ ...job, signal: controller.signal }, work)
    const behind = sim.ask({ workMs: 10 })
    controller.abort()
    await assert.rejects(left, { code: 'CANCELLED' })
    await assert.rejects(sim.admission.run({ ...job, signal: controller.signal }, work), {
      code: 'CANCELLED',
    })
    await sim.until(100)
    assert.equal((await behind).ms, 20)
    await Promise.all(busy)
    assert.equal(work.mock.callCount(), 0)
    assert.equal(sim.admission.inFlight(), 0)
  })

  test('a failure makes room as an end does', async () => {
    const sim = simulation({ depth: () => ({ runs: 1, requests: 1 }) })
    const job: Job = { caller: ONE, priority: 'normal', startMs: 0 }
    const failing = sim.admission.run(job, () => Promise.reject(new Error('as asked')))
    const next = sim.admission.run(job, async () => 'done')
    await assert.rejects(failing, /as asked/)
    assert.equal(await next, 'done')
  })
})

describe('fairness', () => {
  test('a key that floods leaves another its share and its latency', async () => {
    const alone = simulation({ depth: () => ({ runs: 1, requests: 1 }) })
    const calm = arrivals(alone, 2, 120, 8000, { workMs: 5 })
    await alone.until(9000)
    const sim = simulation()
    const flood = arrivals(sim, 1, 2000, 8000, { workMs: 5, caller: { name: 'a', share: 1 } })
    const quiet = arrivals(sim, 2, 120, 8000, { workMs: 5, caller: { name: 'b', share: 1 } })
    await sim.until(9000)
    const [a, b] = [await flood(), await quiet()]
    assert.equal(done(b).length, b.length, 'nothing of the quiet key was refused')
    const half = p99(await calm())
    assert.ok(p99(b) <= half + 5, `p99 ${p99(b)} ms, alone on half of the engine ${half}`)
    const perSec = done(a).length / 8
    assert.ok(perSec >= 0.95 * 280, `the flood gets what is left, ${perSec} a second`)
    assert.ok(
      p99(a.slice(a.length / 4)) <= 160,
      `and waits hardly longer than the bound: ${p99(a)}`,
    )
  })

  test('two floods get work in proportion to their shares', async () => {
    const sim = simulation()
    const [large, small] = [
      arrivals(sim, 1, 1000, 8000, { workMs: 5, caller: { name: 'a', share: 3 } }),
      arrivals(sim, 2, 1000, 8000, { workMs: 10, caller: { name: 'b', share: 1 } }),
    ]
    await sim.until(9000)
    const [a, b] = [done(await large()).length * 5, done(await small()).length * 10]
    assert.ok(Math.abs(a / b - 3) < 0.15, `${a} ms to ${b} ms`)
  })

  test('low is refused first, high last', async () => {
    const sim = simulation()
    const of = (priority: Priority, seed: number) =>
      arrivals(sim, seed, 250, 8000, { workMs: 5, priority })
    const classes = [of('high', 1), of('normal', 2), of('low', 3)]
    await sim.until(9000)
    const [high = [], normal = [], low = []] = await Promise.all(classes.map((all) => all()))
    const share = (all: readonly Result[]) => done(all).length / all.length
    assert.equal(share(high), 1)
    assert.ok(share(normal) > 0.4 && share(normal) < 0.6, String(share(normal)))
    assert.ok(share(low) > 0.05 && share(low) < 0.2, String(share(low)))
    assert.ok(p99(high) < 45, `p99 ${p99(high)}`)
    const late = [normal, low].map((all) => p99(all.slice(all.length / 4)))
    for (const ms of late) assert.ok(ms <= 250, `p99 ${late}`)
  })

  test('a key beyond its quota is refused while the engine idles', async () => {
    const sim = simulation()
    const caller = { name: 'a', share: 1, workMsPerSec: 100 }
    const results = arrivals(sim, 1, 100, 8000, { workMs: 5, caller })
    await sim.until(9000)
    const all = await results()
    const work = done(all).length * 5
    assert.ok(work >= 750 && work <= 1000, `${work} ms in 8 s`)
    assert.deepEqual(new Set(sim.refusals), new Set(['quota']))
  })

  test('a body beyond the limit is taken for no more than one at it, whatever its header says', () => {
    const sim = simulation({ maxBodyBytes: 1000 })
    const job = { caller: ONE, priority: 'normal', startMs: 0 } as const
    sim.admission.check({ ...job, bytes: 100, workMs: 50 }, true)
    for (let i = 0; i < 20; i++) {
      void sim.admission.run({ ...job, workMs: 20 }, () => new Promise(() => {}))
    }
    const other = { ...job, caller: { name: 'other', share: 1 } }
    const [small, limit, huge] = [100, 1000, 1e15].map(
      (bytes) => sim.admission.refusal({ ...other, bytes }, false)?.retryAfterMs ?? 0,
    )
    assert.equal(small, 0)
    assert.ok(limit !== undefined && limit > 0)
    assert.equal(huge, limit)
  })

  test('what waits for the event loop counts beside what waits for the engine', () => {
    let loopMs = 0
    const asked: (number | undefined)[] = []
    const loop = {
      waitMs(_: unknown, bytes: number | undefined) {
        asked.push(bytes)
        return loopMs
      },
    }
    const { admission } = simulation({ loop })
    const job = { caller: ONE, priority: 'normal', startMs: 0, bytes: 7 } as const
    const reasons = [90, 110].map((ms) => {
      loopMs = ms
      return admission.refusal(job, false)?.reason
    })
    assert.deepEqual(reasons, [undefined, 'loop'])
    assert.equal(admission.refusal({ ...job, deadlineMs: 100 }, false)?.reason, 'loop')
    loopMs = 90
    assert.equal(admission.refusal({ ...job, deadlineMs: 80 }, false)?.reason, 'deadline')
    assert.equal(admission.refusal({ ...job, workMs: 1 }, true), undefined, 'it has waited')
    for (let i = 0; i < 9; i++) {
      void admission.run({ ...job, workMs: 20 }, () => new Promise(() => {}))
    }
    assert.equal(admission.refusal(job, false)?.reason, 'loop')
    loopMs = 40
    assert.equal(admission.refusal(job, false)?.reason, 'queue', 'neither alone would be too much')
    assert.deepEqual(new Set(asked), new Set([7]))
  })
})
