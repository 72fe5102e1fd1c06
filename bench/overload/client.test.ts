import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { describe, test } from 'node:test'
import { until } from '../../test/redis.js'
import { createRawClient, requestBytes } from './client.js'

describe('createRawClient', () => {
  test('leaves a socket that the server closed while it was idle', async (t) => {
    const sockets: Socket[] = []
    const server = createServer((_, response) => response.end('{}'))
    server.on('connection', (socket) => sockets.push(socket))
    await once(server.listen(0, '127.0.0.1'), 'listening')
    t.after(() => server.close())
    const { port } = server.address() as AddressInfo
    const client = createRawClient(port)
    t.after(() => client.close())
    const request = requestBytes('{}', {})
    assert.equal((await client.send(request)).status, 200)
    assert.equal((await client.send(request)).status, 200)
    assert.equal(sockets.length, 1)
    sockets[0]?.destroy()
    await until('the socket to be gone', () => client.sockets() === 0)
    assert.equal((await client.send(request)).status, 200)
    assert.deepEqual([sockets.length, client.sockets()], [2, 1])
  })
})
