import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createBreaker } from './breaker.js'

/** A breaker whose pauses pass when told, and whose probes end as told. */
function open() {
  const states: string[] = []
  const pauses: number[] = []
  let elapse = () => {}
  let works = false
  const breaker = createBreaker<'head' | 'fetch'>({
    probe: async () => {
      if (!works) throw new Error('still down')
    },
    onChange: (state) => states.push(state),
    after: (ms, then) => {
      pauses.push(ms)
      elapse = then
      return {
        cancel: () => {
          elapse = () => {}
        },
      }
    },
  })
  return {
    breaker,
    states,
    pauses,
    repair: () => {
      works = true
    },
    async pass() {
      elapse()
      await new Promise(setImmediate)
    },
  }
}

describe('createBreaker', () => {
  test('opens after three failures in a row, not after three with a success between', () => {
    const { breaker, states } = open()
    breaker.failed('head')
    breaker.failed('head')
    breaker.succeeded('head')
    breaker.failed('head')
    breaker.failed('head')
    assert.equal(breaker.isOpen(), false)
    breaker.failed('head')
    assert.equal(breaker.isOpen(), true)
    breaker.failed('head')
    assert.deepEqual([states, breaker.opened()], [['open'], 1])
  })

  test('probes after pauses that double up to five seconds, until one succeeds', async () => {
    const { breaker, pauses, states, pass, repair } = open()
    for (let i = 0; i < 3; i++) breaker.failed('head')
    for (let i = 0; i < 8; i++) await pass()
    assert.deepEqual(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000])
    assert.equal(breaker.isOpen(), true)
    repair()
    await pass()
    assert.equal(breaker.isOpen(), false)
    assert.deepEqual(states, ['open', 'closed'])
    breaker.succeeded('head')
    for (let i = 0; i < 3; i++) breaker.failed('head')
    assert.equal(pauses.at(-1), 100)
    assert.equal(breaker.opened(), 2)
  })

  test('calls of another kind that work do not hide those that fail', () => {
    const { breaker } = open()
    for (let i = 0; i < 3; i++) {
      breaker.succeeded('head')
      breaker.failed('fetch')
    }
    assert.equal(breaker.isOpen(), true)
    breaker.succeeded('head')
    assert.equal(breaker.isOpen(), true, 'they say nothing of what opened it')
  })

  test('pauses grow while probes succeed and calls do not, until a call works', async () => {
    const { breaker, pauses, pass, repair } = open()
    repair()
    for (let i = 0; i < 3; i++) {
      for (let f = 0; f < 3; f++) breaker.failed('fetch')
      await pass()
      assert.equal(breaker.isOpen(), false)
      breaker.succeeded('head')
    }
    breaker.succeeded('fetch')
    for (let f = 0; f < 3; f++) breaker.failed('fetch')
    assert.deepEqual(pauses, [100, 200, 400, 100])
  })

  test('a late success of a request closes it too', () => {
    const { breaker, states } = open()
    for (let i = 0; i < 3; i++) breaker.failed('head')
    breaker.succeeded('head')
    assert.deepEqual(states, ['open', 'closed'])
  })

  test('probes no more once stopped', async () => {
    const { breaker, pauses, pass } = open()
    for (let i = 0; i < 3; i++) breaker.failed('head')
    breaker.stop()
    await pass()
    assert.equal(pauses.length, 1)
  })
})
