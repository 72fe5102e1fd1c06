// What deploy/nginx/nginx.conf promises, before replicas that are plain objects.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, type TestContext, test } from 'node:test'
import type { Ranker } from '../falcon/types.js'
import { RankError } from '../model/errors.js'
import { NO_NGINX, startNginx } from './nginx.js'
import { appOf, rankerOf } from './plain-ranker.js'
import { until } from './redis.js'

const BODY = JSON.stringify({ user: { id: 'u' }, candidates: ['a'] })
/** No multiple of the replicas: turns would else look like affinity. */
const USERS = Array.from({ length: 31 }, (_, u) => `user-${u}`)

/** nginx before three apps; `rankers` are theirs, undefined for one that still loads. */
async function replicas(t: TestContext, rankers: readonly (Ranker | undefined)[] = []) {
  const apps = await Promise.all(
    [0, 1, 2].map((i) => {
      const ranker = i in rankers ? rankers[i] : rankerOf()
      return appOf(undefined, { ranker: () => ranker })
    }),
  )
  const ports: number[] = []
  for (const app of apps) {
    t.after(() => app.close())
    const url = await app.listen({ host: '127.0.0.1', port: 0 })
    ports.push(Number(new URL(url).port))
  }
  const nginx = await startNginx(t, ports)
  const ask = async (user?: string, path = '/v1/rank', method = 'POST') => {
    const headers = {
      'content-type': 'application/json',
      ...(user === undefined ? {} : { 'x-user-id': user }),
    }
    const body = method === 'POST' ? { body: BODY } : {}
    const url = `http://127.0.0.1:${nginx.port}${path}`
    const before = nginx.logged()
    const { status } = await fetch(url, { method, headers, ...body })
    await until('its line in the log', () => nginx.logged() > before)
    return status
  }
  return { apps, ports, nginx, ask }
}

/** Rejects with `code` each time. */
function failing(code: 'OVERLOADED' | 'WORKER_CRASHED'): Ranker {
  return rankerOf(async () => {
    throw new RankError(code, 'as the test wants it')
  })
}

describe('nginx.conf', { skip: NO_NGINX }, () => {
  test("a user's requests go to one replica, users and requests without one to all", async (t) => {
    const { ask, nginx } = await replicas(t)
    for (let round = 0; round < 3; round++) {
      for (const user of USERS) assert.equal(await ask(user), 200)
    }
    const upstreams = nginx.passed().map(({ upstream }) => upstream)
    const [first, ...others] = [0, 1, 2].map((round) =>
      upstreams.slice(round * USERS.length, (round + 1) * USERS.length),
    )
    for (const other of others) assert.deepEqual(other, first)
    assert.equal(new Set(first).size, 3)
    for (const _ of USERS) assert.equal(await ask(), 200)
    const without = nginx.passed().slice(3 * USERS.length)
    assert.equal(new Set(without.map(({ upstream }) => upstream)).size, 3)
  })

  test('a replica that loads, is gone or lost its workers is passed over', async (t) => {
    const { ask, apps, ports, nginx } = await replicas(t, [undefined])
    await apps[1]?.close()
    for (const user of USERS) assert.equal(await ask(user), 200)
    const last = nginx.passed().map(({ upstream }) => upstream.split(', ').at(-1))
    assert.deepEqual(new Set(last), new Set([`127.0.0.1:${ports[2]}`]))

    const crashing = await replicas(t, [failing('WORKER_CRASHED')])
    for (const user of USERS) assert.equal(await crashing.ask(user), 200)
    assert.ok(crashing.nginx.passed().some(({ upstreamStatus }) => upstreamStatus === '503, 200'))
  })

  test('429 is not passed on: the other replicas have as much to do', async (t) => {
    const { ask, nginx } = await replicas(t, Array(3).fill(failing('OVERLOADED')))
    assert.equal(await ask('u'), 429)
    assert.deepEqual(
      nginx.passed().map(({ upstreamStatus }) => upstreamStatus),
      ['429'],
    )
  })

  test('what belongs to one replica cannot be asked for', async (t) => {
    const { ask } = await replicas(t)
    assert.equal(await ask('u', '/metrics', 'GET'), 404)
    assert.equal(await ask('u', '/v1/admin/models/toy/promote'), 403)
    assert.equal(await ask('u', '/v1/admin/models', 'GET'), 403)
    assert.equal(await ask('u', '/v1/models', 'GET'), 200)
  })

  test('nginx closes idle connections before the server does', async (t) => {
    const { apps } = await replicas(t)
    const conf = readFileSync('deploy/nginx/nginx.conf', 'utf8')
    const keptSec = Number(/^ *keepalive_timeout (\d+)s;$/m.exec(conf)?.[1])
    for (const { server } of apps) assert.ok(server.keepAliveTimeout > 1000 * keptSec)
  })

  test('a body that outgrows the buffer of nginx arrives', async (t) => {
    const { nginx } = await replicas(t)
    const answer = await fetch(`http://127.0.0.1:${nginx.port}/v1/rank`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: BODY + ' '.repeat(50_000),
    })
    assert.equal(answer.status, 200)
  })
})
