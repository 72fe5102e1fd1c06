import assert from 'node:assert/strict'
import { describe, type TestContext, test } from 'node:test'
import { RankError } from '../model/errors.js'
import { createDeadline } from './deadline.js'
import type { RankOptions } from './types.js'

/** A deadline whose clock and timers go only where they are told to. */
function open(t: TestContext, options: RankOptions) {
  t.mock.timers.enable({ apis: ['setTimeout'] })
  let clock = 100
  const deadline = createDeadline(options, clock, () => clock)
  /** The clock first, then the timers: `late` is how far the clock lies behind them. */
  const pass = (ms: number, late = 0) => {
    clock += ms - late
    t.mock.timers.tick(ms)
  }
  return { ...deadline, pass }
}

describe('createDeadline', () => {
  test('aborts by itself once the clock is past it, with what was scored by then', (t) => {
    const { signal, isOver, pass } = open(t, { deadlineMs: 10 })
    assert.equal(isOver(40), false)
    pass(10)
    assert.equal(signal.aborted, false, 'not past it yet')
    pass(1)
    assert.equal(signal.aborted, true)
    assert.equal(signal.reason.code, 'DEADLINE_EXCEEDED')
    assert.equal(
      signal.reason.message,
      'deadlineMs 10 passed after 11.0 ms with 40 candidates scored',
    )
    assert.throws(() => isOver(40), signal.reason)
  })

  test('goes by the clock where the timer is early, and waits again', (t) => {
    const { signal, pass } = open(t, { deadlineMs: 10 })
    pass(11, 5)
    assert.equal(signal.aborted, false)
    pass(4)
    assert.equal(signal.aborted, false)
    pass(1)
    assert.equal(signal.aborted, true)
  })

  test('is seen between two runs before its timer had a turn', (t) => {
    let clock = 0
    t.mock.timers.enable({ apis: ['setTimeout'] })
    for (const partial of [false, true]) {
      clock = 0
      const { isOver, signal } = createDeadline({ deadlineMs: 10, partial }, 0, () => clock)
      assert.equal(isOver(0), false)
      clock = 11
      if (partial) assert.equal(isOver(2), true)
      else assert.throws(() => isOver(2), { code: 'DEADLINE_EXCEEDED', message: /2 candidates/ })
      assert.equal(signal.aborted, true)
    }
  })

  test('gives up its own work for a partial answer only, and passes other errors on', async (t) => {
    for (const partial of [false, true]) {
      const { signal, within, pass } = open(t, { deadlineMs: 10, partial })
      assert.equal(await within(Promise.resolve(7)), 7)
      pass(11)
      const own = within(Promise.reject(signal.reason))
      if (partial) assert.equal(await own, undefined)
      else await assert.rejects(own, { code: 'DEADLINE_EXCEEDED' })
      const crash = new RankError('WORKER_CRASHED', 'gone')
      await assert.rejects(within(Promise.reject(crash)), crash)
      t.mock.timers.reset()
    }
  })

  test('is CANCELLED when the client leaves, before or meanwhile, also where a part would do', async (t) => {
    for (const partial of [false, true]) {
      for (const isEarly of [false, true]) {
        const client = new AbortController()
        if (isEarly) client.abort()
        const options = { deadlineMs: 10, partial, signal: client.signal }
        const { signal, isOver, within } = open(t, options)
        client.abort()
        assert.equal(signal.reason.code, 'CANCELLED')
        assert.equal(signal.reason.message, 'the client left after 0.0 ms with 0 candidates scored')
        assert.throws(() => isOver(0), signal.reason)
        await assert.rejects(within(Promise.reject(signal.reason)), signal.reason)
        t.mock.timers.reset()
      }
    }
  })

  test('whichever comes first stays the reason', (t) => {
    const client = new AbortController()
    const { signal, pass } = open(t, { deadlineMs: 10, signal: client.signal })
    pass(11)
    client.abort()
    assert.equal(signal.reason.code, 'DEADLINE_EXCEEDED')
  })

  test('nothing aborts it after its end', (t) => {
    const client = new AbortController()
    const { signal, end, pass } = open(t, { deadlineMs: 10, signal: client.signal })
    end()
    client.abort()
    pass(100)
    assert.equal(signal.aborted, false)
  })

  test('without limits it is never over', (t) => {
    const { signal, isOver, pass } = open(t, {})
    pass(2 ** 31)
    assert.equal(isOver(0), false)
    assert.equal(signal.aborted, false)
  })
})
