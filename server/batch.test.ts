import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { RankError } from '../model/errors.js'
import { client, resultOf } from '../test/plain-ranker.js'

const BATCH = '/v1/rank/batch'
const request = (...candidates: string[]) => ({ user: { id: 'u' }, candidates })

describe('POST /v1/rank/batch', () => {
  test('answers in the order of the requests, whichever is done first', async (t) => {
    let later: () => void = () => {}
    const second = new Promise<void>((resolve) => {
      later = resolve
    })
    const post = await client(t, async (input) => {
      if (input.candidates[0]?.item === 'a') await second
      else later()
      return resultOf(input)
    })
    const res = await post({ requests: [request('a'), request('b')] }, BATCH)
    assert.equal(res.statusCode, 200)
    const items = res.json().results.map((r: { items: { item: string }[] }) => r.items[0]?.item)
    assert.deepEqual(items, ['a', 'b'])
  })

  test('answers the single request as /v1/rank does', async (t) => {
    const post = await client(t)
    const one = await post(request('a', 'b'))
    const batch = await post({ requests: [request('a', 'b')] }, BATCH)
    const untimed = ({ timings: _, ...answer }: { timings: object }) => answer
    const { results } = batch.json()
    assert.deepEqual(results.map(untimed), [untimed(one.json())])
  })

  test('a bad request loses no other, whatever is wrong with it', async (t) => {
    const post = await client(t, async (input) => {
      if (input.user.id === 'late') throw new RankError('DEADLINE_EXCEEDED', 'too late')
      if (input.user.id === 'odd') throw new Error('secret')
      if (input.user.id === 'action') {
        const path = '/histories/0/0/actions/0'
        throw new RankError('INVALID_REQUEST', 'unknown action', { path })
      }
      return resultOf(input)
    })
    const send = async (bad: unknown) => {
      const res = await post({ requests: [request('a'), bad, request('b')] }, BATCH)
      assert.equal(res.statusCode, 200, res.body)
      const [first, error, last] = res.json().results
      assert.equal(first.items[0].item, 'a')
      assert.equal(last.items[0].item, 'b')
      return error
    }
    assert.deepEqual(await send(null), {
      error: {
        code: 'INVALID_REQUEST',
        message: 'body must be a JSON object, got null',
        path: '',
      },
    })
    const history = [{ item: 'x', time: 'now' }]
    assert.deepEqual(await send({ ...request('a'), history }), {
      error: {
        code: 'INVALID_REQUEST',
        message: 'must be integer, got "now"',
        path: '/history/0/time',
      },
    })
    assert.deepEqual(await send(request(...Array(11).fill('a'))), {
      error: {
        code: 'LIMIT_EXCEEDED',
        message: 'candidates must be at most 10, got 11',
        path: '/candidates',
      },
    })
    const unknown = await send({ ...request('a'), model: 'other' })
    assert.equal(unknown.error.code, 'MODEL_NOT_FOUND')
    assert.deepEqual(await send({ ...request('a'), user: { id: 'late' } }), {
      error: { code: 'DEADLINE_EXCEEDED', message: 'too late' },
    })
    assert.deepEqual(await send({ ...request('a'), user: { id: 'odd' } }), {
      error: { code: 'INTERNAL', message: 'internal error' },
    })
    assert.deepEqual(await send({ ...request('a'), user: { id: 'action' }, history: [] }), {
      error: { code: 'INVALID_REQUEST', message: 'unknown action', path: '/history/0/actions/0' },
    })
  })

  for (const [name, body, status, message] of [
    ['a list', [], 400, /JSON object, got an array of 0$/],
    ['without requests', {}, 400, /^lacks the fields: "requests"$/],
    ['with no request in it', { requests: [] }, 400, /1 items, got an array of 0$/],
    ['with unknown fields', { requests: [1], all: 1 }, 400, /^has unknown fields: "all"$/],
    ['with too many requests', { requests: [1, 2, 3, 4, 5] }, 422, /at most 4, got 5$/],
  ] as const) {
    test(`an envelope ${name} is ${status}`, async (t) => {
      const post = await client(t)
      const res = await post(body, BATCH)
      assert.equal(res.statusCode, status, res.body)
      assert.match(res.json().message, message)
    })
  }
})
