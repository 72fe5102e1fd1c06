import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { crowdFault, events, request } from './fault.js'
import { withoutPlain } from './plain.js'

const plain = { item: '17', time: 1_700_000_000, actions: ['click'] }
const crowd = Object.fromEntries(Array.from({ length: 300 }, (_, i) => [`f${i}`, 'x']))
/** Elements of a history, faultless and not, plain and not. */
const EVENTS: readonly unknown[] = [
  ...[plain, { item: '17', time: 0 }, { ...plain, actions: [] }, { ...plain, features: { a: 1 } }],
  ...[
    { ...plain, item: '' },
    { ...plain, item: 'x'.repeat(256) },
    { ...plain, item: 7 },
  ],
  ...[
    { ...plain, item: '👍'.repeat(128) },
    { ...plain, item: '👍'.repeat(200) },
  ],
  ...[{ ...plain, item: 'x'.repeat(257) }, { ...plain, item: 'é'.repeat(256) }, { item: '17' }],
  ...[{ ...plain, time: -0 }, { ...plain, time: -1 }, { ...plain, time: 0.5 }, { time: 7 }],
  ...[
    { ...plain, time: 253_402_300_799 },
    { ...plain, time: 253_402_300_800 },
  ],
  ...[
    { ...plain, time: '7' },
    { ...plain, time: null },
    { ...plain, time: Number.NaN },
  ],
  ...[
    { ...plain, actions: ['a', 1] },
    { ...plain, actions: [''] },
    { ...plain, actions: 'click' },
  ],
  ...[
    { ...plain, actions: new Array(64).fill('a') },
    { ...plain, actions: new Array(65).fill('a') },
  ],
  ...[
    { ...plain, actions: new Array(257).fill('a') },
    { ...plain, actions: null },
  ],
  ...[
    { ...plain, extra: 1 },
    { item: '17', time: 1, extra: 1 },
    { ...plain, ...crowd },
  ],
  ...[
    { ...plain, features: crowd },
    { ...plain, features: new Uint8Array(3) },
  ],
  ...[[], ['17', 1], null, 'x', 7, new Uint8Array(3), {}],
]
const CANDIDATES: readonly unknown[] = [
  ...['7', 'x'.repeat(256), 'x'.repeat(257), '', '👍'.repeat(129), '👍'.repeat(257), 7, null],
  ...[
    { item: '7' },
    { item: '' },
    { item: '7', features: { a: 'b' } },
    { item: '7', features: crowd },
  ],
  ...[['7'], new Uint8Array(3)],
]

describe('withoutPlain', () => {
  const same = (checker: typeof request | typeof events, body: Record<string, unknown>) => {
    const rest = withoutPlain(body)
    const what = JSON.stringify(body).slice(0, 300)
    assert.equal(checker.Check(rest), checker.Check(body), what)
    assert.deepEqual(crowdFault(rest), crowdFault(body), what)
  }

  test('has a fault for the schema, and a crowd at the same place, where the whole body has', () => {
    for (const odd of EVENTS) {
      for (const history of [[odd], [odd, plain], [plain, odd], [plain, plain, odd, plain]]) {
        same(request, { user: { id: 'u' }, candidates: ['7'], history })
        same(events, { events: history })
      }
    }
    for (const odd of CANDIDATES) {
      for (const candidates of [[odd], [odd, '7'], ['7', odd], ['7', '8', odd, '9']]) {
        same(request, { user: { id: 'u' }, candidates })
      }
    }
  })

  test('leaves everything else to the schema', () => {
    const whole = { user: { id: 'u' }, candidates: ['7', '8'], history: [plain, plain] }
    const lists = ['candidates', 'history']
    for (const name of [...Object.keys(whole), 'exclude', 'events', 'histories', 'time', 'extra']) {
      for (const value of [
        undefined,
        null,
        7,
        '7',
        [],
        {},
        ['7', '8'],
        [plain],
        [[plain, plain]],
      ]) {
        same(request, { ...whole, [name]: value })
      }
    }
    for (const name of lists) same(request, { ...whole, [name]: new Uint8Array(8) })
    same(request, { ...whole, ...crowd })
  })

  test('cuts lists that are plain, and only those', () => {
    const features = { ...plain, features: { a: 1 } }
    const body = { user: { id: 'u' }, candidates: ['7', '8'], history: [plain, features] }
    assert.deepEqual(withoutPlain(body), { ...body, candidates: ['7'] })
    assert.deepEqual(body.candidates, ['7', '8'])
  })
})
