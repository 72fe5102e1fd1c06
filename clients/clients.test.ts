// Both clients against a server that listens.
import assert from 'node:assert/strict'
import { execFile, execFileSync } from 'node:child_process'
import { describe, type TestContext, test } from 'node:test'
import { promisify } from 'node:util'
import { RankError } from '../model/errors.js'
import { appOf, resultOf } from '../test/plain-ranker.js'
import { createClient, PeregrineError } from './typescript/client.js'

async function listening(t: TestContext) {
  const app = await appOf(async (input) => {
    if (input.user.id === 'late') throw new RankError('DEADLINE_EXCEEDED', 'too late')
    return resultOf(input)
  })
  t.after(() => app.close())
  return app.listen({ host: '127.0.0.1', port: 0 })
}

const HISTORY = [{ item: 'x', time: 5, actions: ['click'] }]

describe('the TypeScript client', () => {
  test('calls every route', async (t) => {
    const client = createClient({ url: `${await listening(t)}/` })
    const answer = await client.rank({
      user: { id: 'u' },
      history: HISTORY,
      candidates: ['a', 'b'],
    })
    assert.equal(answer.model, 'toy@abc123')
    assert.deepEqual(answer.items[0], { item: 'a', score: 1, tasks: { click: 1 } })
    const { results } = await client.rankBatch([
      { user: { id: 'u' }, candidates: ['a'] },
      { user: { id: 'late' }, candidates: ['a'] },
    ])
    assert.ok(results[0] !== undefined && 'items' in results[0])
    assert.ok(results[1] !== undefined && 'error' in results[1])
    assert.equal(results[1].error.code, 'DEADLINE_EXCEEDED')
    await assert.rejects(client.retrieve({ user: { id: 'u' }, topK: 3 }), {
      ...{ code: 'INVALID_REQUEST', path: '/model' },
    })
    assert.equal((await client.prefetch({ user: { id: 'u' }, wait: true })).kv?.state, 'miss')
    const stored = await client.appendEvents('u/ü', { events: HISTORY })
    assert.deepEqual(stored, { stored: 1, duplicates: 0, total: 1, trimmed: 0 })
    assert.deepEqual((await client.user('u/ü')).events, HISTORY)
    assert.equal(await client.forget('u/ü'), undefined)
    assert.equal((await client.user('u/ü')).count, 0)
    assert.equal((await client.models()).models[0]?.name, 'toy')
  })

  test('throws what the server refuses, with its code, status and path', async (t) => {
    const client = createClient({ url: await listening(t) })
    await assert.rejects(client.rank({ user: { id: '' }, candidates: ['a'] }), (error) => {
      assert.ok(error instanceof PeregrineError)
      const { code, status, path } = error
      assert.deepEqual(
        { code, status, path },
        {
          ...{ code: 'INVALID_REQUEST', status: 400, path: '/user/id' },
        },
      )
      return true
    })
    const signal = AbortSignal.abort(new Error('no longer wanted'))
    await assert.rejects(client.models({ signal }), /no longer wanted/)
  })
})

const PYTHON = `
import json, sys
sys.path.insert(0, "clients/python")
from peregrine import Client, PeregrineError

client = Client(sys.argv[1])
history = [{"item": "x", "time": 5, "actions": ["click"]}]
answer = client.rank({"user": {"id": "u"}, "history": history, "candidates": ["a", "b"]})
batch = client.rank_batch([{"user": {"id": "late"}, "candidates": ["a"]}])
prefetch = client.prefetch({"user": {"id": "u"}, "wait": True})
stored = client.append_events("u/ü", {"events": history})
events = client.user("u/ü")["events"]
client.forget("u/ü")
try:
    client.rank({"user": {"id": ""}, "candidates": ["a"]})
except PeregrineError as error:
    refused = [error.code, error.status, error.path]
try:
    client.retrieve({"user": {"id": "u"}, "topK": 3})
except PeregrineError as error:
    headless = [error.code, error.path]
print(json.dumps([
    answer["items"][0], batch[0]["error"]["code"], prefetch["kv"]["state"], stored["stored"], events,
    client.user("u/ü")["count"], client.models()["models"][0]["name"], refused, headless,
]))
`

function hasPython(): boolean {
  try {
    execFileSync('python3', ['--version'], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

describe('the Python client', () => {
  test('calls every route', { skip: hasPython() ? false : 'no python3 on PATH' }, async (t) => {
    const url = await listening(t)
    const { stdout } = await promisify(execFile)('python3', ['-c', PYTHON, url])
    assert.deepEqual(JSON.parse(stdout), [
      { item: 'a', score: 1, tasks: { click: 1 } },
      'DEADLINE_EXCEEDED',
      'miss',
      1,
      HISTORY,
      0,
      'toy',
      ['INVALID_REQUEST', 400, '/user/id'],
      ['INVALID_REQUEST', '/model'],
    ])
  })
})
