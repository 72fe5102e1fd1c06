import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { KvHandle } from '../model/engine/engine.js'
import type { OnStep } from '../model/step.js'
import { sliceTokens } from '../model/tokens.js'
import { edited, plainTokens } from '../test/counting-engine.js'
import { createFakeRedisKv } from '../test/fake-redis-kv.js'
import { digestChain } from './digest.js'
import { userHash } from './key.js'
import { createRemote } from './remote.js'
import { createTier2 } from './tier2.js'

const USER = userHash('u')
const TOKEN_BYTES = 10
const all = plainTokens(200)
const first = (length: number) => sliceTokens(all, 0, length)

type Setup = {
  /** Tokens that tier 2 holds. */
  readonly stored?: number
  readonly msPerToken?: number
  readonly roundTripMs?: number
  readonly msPerByte?: number
  readonly appendIsExact?: boolean
  readonly always?: boolean
  readonly importFails?: boolean
  /** What a head takes, by the clock. */
  readonly headMs?: number
}

async function open(setup: Setup = {}) {
  const { stored = 150, msPerToken = 1, roundTripMs = 1, msPerByte = 0 } = setup
  const { appendIsExact = true, always = false, importFails = false, headMs = 0 } = setup
  const kv = createFakeRedisKv()
  const rows = { tokens: stored, layers: [] }
  await kv.write(USER, digestChain(first(stored)), undefined, rows)
  const released: KvHandle[] = []
  const observed: number[] = []
  const budgets: number[] = []
  let clock = 0
  const tier2 = createTier2(kv, () => {})
  const remote = createRemote({
    tier2: {
      ...tier2,
      head(user, budgetMs, signal) {
        budgets.push(budgetMs)
        clock += headMs
        return tier2.head(user, budgetMs, signal)
      },
      fetch(user, head, tokens, budgetMs, signal) {
        budgets.push(budgetMs)
        return tier2.fetch(user, head, tokens, budgetMs, signal)
      },
    },
    now: () => clock,
    engine: {
      importKv: async ({ tokens, times }) => {
        assert.deepEqual(times, all.times.subarray(0, tokens))
        if (importFails) throw new Error('no memory left')
        return { tokens, bytes: tokens, device: 'test' }
      },
      release: (handle) => released.push(handle),
    },
    costs: {
      prefillMs: (tokens) => tokens * msPerToken,
      fetchMs: (bytes) => roundTripMs + bytes * msPerByte,
      observeFetch: (bytes) => observed.push(bytes),
    },
    appendIsExact,
    tokenBytes: TOKEN_BYTES,
    always,
  })
  const told: unknown[] = []
  const ask = async (tokens = first(180), here = 0) => {
    const onStep: OnStep = (name, _start, _end, attributes) => told.push([name, attributes])
    return (await remote(USER, tokens, digestChain(tokens), here, undefined, onStep))?.covered
  }
  const pass = (ms: number) => {
    clock += ms
  }
  return { kv, ask, observed, budgets, pass, told }
}

describe('createRemote', () => {
  test('what the engine cannot take is nothing found, and no measurement', async () => {
    const { ask, kv, observed } = await open({ importFails: true })
    assert.equal(await ask(), undefined)
    assert.deepEqual([observed, kv.lent.count], [[], 0])
  })

  test('fetches the longest verified beginning and says what it was', async () => {
    const { ask, kv, observed, told } = await open()
    assert.equal(await ask(first(180)), 150)
    assert.deepEqual(told, [['kv.fetch', { tokens: 180, fetched: 150 }]])
    assert.equal(await ask(first(150)), 150)
    assert.equal(await ask(first(140)), 128)
    assert.equal(await ask(edited(first(180), 130)), 128)
    assert.deepEqual(observed, [1500, 1500, 1280, 1280])
    assert.equal(kv.lent.count, 0, 'imported is done')
  })

  test('fetches nothing for a history that began otherwise, or of another user', async () => {
    const { ask, kv } = await open()
    assert.equal(await ask(edited(first(180), 3)), undefined)
    assert.equal(await ask(plainTokens(180, 7)), undefined)
    assert.equal(kv.calls.fetch, 0)
  })

  test('does not even ask where computing is cheaper', async () => {
    const { ask, kv, told } = await open({ roundTripMs: 200 })
    assert.equal(await ask(first(180)), undefined)
    assert.equal(kv.calls.head, 0)
    assert.deepEqual(told, [], 'a step that nobody took')
    const slow = await open({ msPerByte: 0.2 })
    assert.equal(await slow.ask(first(180)), undefined)
    assert.equal(slow.kv.calls.head, 0)
  })

  test('asks, but fetches nothing, where tier 2 has too little to pay for itself', async () => {
    const { ask, kv } = await open({ stored: 64, roundTripMs: 100 })
    assert.equal(await ask(first(180)), undefined)
    assert.deepEqual([kv.calls.head, kv.calls.fetch], [1, 0])
  })

  test('what is here already counts: only more of it is worth a fetch', async () => {
    const { ask, kv } = await open({ roundTripMs: 20 })
    assert.equal(await ask(first(180), 120), 150)
    assert.equal(await ask(first(180), 150), undefined)
    assert.equal(await ask(first(180), 175), undefined)
    assert.equal(kv.calls.fetch, 1)
  })

  test('always means whatever it costs', async () => {
    const { ask } = await open({ roundTripMs: 1_000, always: true })
    assert.equal(await ask(first(180)), 150)
  })

  test('where an append is not exact only the whole history will do', async () => {
    const { ask } = await open({ appendIsExact: false })
    assert.equal(await ask(first(150)), 150)
    assert.equal(await ask(first(180)), undefined)
    assert.equal(await ask(first(128)), undefined)
  })

  test('a Redis that hangs is waited for as long as computing takes, and gives nothing', async () => {
    const { ask, kv, budgets } = await open({ msPerToken: 0.1 })
    kv.behave(() => new Promise<never>(() => {}))
    assert.equal(await ask(first(180)), undefined)
    assert.equal(await ask(first(180), 100), undefined)
    // 5 ms and those of 180 tokens, of 80 tokens.
    assert.deepEqual(budgets, [5 + 18, 5 + 8])
  })

  test('pages have what the head left of the budget', async () => {
    const { ask, budgets, pass } = await open({ headMs: 60 })
    assert.equal(await ask(first(180)), 150)
    assert.deepEqual(budgets, [185, 125])
    pass(1_000)
    assert.equal(await ask(first(180)), 150)
    assert.deepEqual(budgets.slice(2), [185, 125])
  })
})
