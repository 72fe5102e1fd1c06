import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { text } from 'node:stream/consumers'
import { describe, type TestContext, test } from 'node:test'
import { Registry } from 'prom-client'
import { appOf, resultOf } from '../test/plain-ranker.js'
import { until } from '../test/redis.js'
import { createListener, type ListenerOptions } from './listener.js'

const BODY = JSON.stringify({ user: { id: 'u' }, candidates: ['a'] })
const HEAD = `POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${BODY.length}\r\n`
/** Long enough for all that shall not end. */
const NEVER_MS = 3_600_000
const FAST = {
  headersMs: NEVER_MS,
  requestMs: NEVER_MS,
  keepAliveMs: NEVER_MS,
  silenceMs: NEVER_MS,
  checkMs: 10,
}

/** A real port, and sockets on it. */
async function listening(t: TestContext, options: ListenerOptions) {
  const registry = new Registry()
  const big = Array.from({ length: 40_000 }, (_, i) => `${i}`.padStart(200, 'x'))
  const app = await appOf(
    async (input) =>
      input.user.id === 'big'
        ? resultOf({ ...input, candidates: big.map((item) => ({ item })) })
        : resultOf(input),
    { listener: createListener(options), registry },
  )
  const sockets: Socket[] = []
  t.after(() => {
    for (const socket of sockets) socket.destroy()
    return app.close()
  })
  const { port } = new URL(await app.listen({ host: '127.0.0.1', port: 0 }))
  const open = async (): Promise<Socket> => {
    const socket = connect(Number(port), '127.0.0.1')
    sockets.push(socket)
    await once(socket, 'connect')
    return socket
  }
  return { app, registry, open }
}

/** The status line and the code of what came until the end. */
async function answerOf(socket: Socket) {
  const all = await text(socket)
  const [head = '', body = ''] = all.split('\r\n\r\n')
  return { status: head.split('\r\n', 1)[0], body: body === '' ? undefined : JSON.parse(body) }
}

const TIMED_OUT = {
  status: 'HTTP/1.1 408 Request Timeout',
  body: { code: 'INVALID_REQUEST', message: 'the request took too long to arrive' },
}

describe('a client that is slow', () => {
  test('to send its headers is answered 408 and closed', async (t) => {
    const timeouts = { ...FAST, headersMs: 50 }
    const { open } = await listening(t, { timeouts })
    const socket = await open()
    socket.write('POST /v1/rank HTTP/1.1\r\nhost: x\r\n')
    // Keeps the connection busy, as slow-loris does.
    const drip = setInterval(() => socket.write('x-drip: 1\r\n'), 5)
    t.after(() => clearInterval(drip))
    socket.on('error', () => {})
    assert.deepEqual(await answerOf(socket), TIMED_OUT)
  })

  test('to send anything at all is closed too', async (t) => {
    const { open } = await listening(t, { timeouts: { ...FAST, headersMs: 50 } })
    assert.deepEqual(await answerOf(await open()), TIMED_OUT)
  })

  test('to send its body is answered 408 and closed', async (t) => {
    const timeouts = { ...FAST, headersMs: 50, requestMs: 100 }
    const { open } = await listening(t, { timeouts })
    const socket = await open()
    socket.write(`${HEAD}\r\n${BODY.slice(0, 5)}`)
    assert.deepEqual(await answerOf(socket), TIMED_OUT)
  })

  test('to ask again is closed without a word', async (t) => {
    const { open } = await listening(t, { timeouts: { ...FAST, keepAliveMs: 20 } })
    const socket = await open()
    socket.write(`${HEAD}\r\n${BODY}`)
    const { status } = await answerOf(socket)
    assert.equal(status, 'HTTP/1.1 200 OK')
  })

  test('to read its answer is closed, and what was left is dropped', async (t) => {
    const { open, registry } = await listening(t, { timeouts: { ...FAST, silenceMs: 100 } })
    const socket = await open()
    const body = BODY.replace('"u"', '"big"')
    socket.pause()
    socket.write(`${HEAD.replace(`${BODY.length}\r\n`, `${body.length}\r\n`)}\r\n${body}`)
    await until('the end of the connection', async () => {
      return (await registry.metrics()).includes('peregrine_connections 0')
    })
    const got = await text(socket).catch(() => '')
    assert.ok(got.length < 40_000 * 200, `${got.length} characters came`)
  })
})

describe('connections', () => {
  test('beyond the limit are closed at once and counted; the others are served', async (t) => {
    const { open, registry } = await listening(t, { maxConnections: 2 })
    const [first] = [await open(), await open()]
    const third = await open()
    third.on('error', () => {}).resume()
    if (!third.closed) await once(third, 'close')
    const metrics = await registry.metrics()
    assert.match(metrics, /^peregrine_connections 2$/m)
    assert.match(metrics, /^peregrine_connections_dropped_total 1$/m)
    first.write(`${HEAD}connection: close\r\n\r\n${BODY}`)
    assert.equal((await answerOf(first)).status, 'HTTP/1.1 200 OK')
  })
})
