import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createQuotas } from './quota.js'

test('a key may ask for its work per second, overdraw it once, and waits until that is paid', () => {
  let clock = 0
  const quotas = createQuotas(() => clock)
  const key = { name: 'a', workMsPerSec: 500 }
  for (let i = 0; i < 5; i++) {
    assert.equal(quotas.overdrawnMs(key), 0)
    quotas.take(key, 120)
  }
  assert.equal(quotas.overdrawnMs(key), 200, '100 ms too much at 500 per second')
  assert.equal(quotas.overdrawnMs({ name: 'b', workMsPerSec: 1 }), 0, 'another key')
  clock += 201
  assert.equal(quotas.overdrawnMs(key), 0)
  clock += 1e6
  quotas.take(key, 501)
  assert.ok(quotas.overdrawnMs(key) > 0, 'no more is saved than a second brings')
})

test('a key without a limit is never overdrawn', () => {
  const quotas = createQuotas(() => 0)
  quotas.take({ name: 'a' }, 1e9)
  assert.equal(quotas.overdrawnMs({ name: 'a' }), 0)
})
