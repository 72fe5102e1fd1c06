import assert from 'node:assert/strict'
import { createServer } from 'node:net'
import { describe, test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { deferred, withinMs } from './deferred.js'

describe('withinMs', () => {
  test('is what comes first: the promise, its fault, or what there is instead of it', async () => {
    const never = deferred<string>().promise
    assert.equal(await withinMs(Promise.resolve('in time'), 1000, () => 'late'), 'in time')
    assert.equal(await withinMs(never, 1, () => 'late'), 'late')
    await assert.rejects(
      withinMs(Promise.reject(new Error('no')), 1000, () => 'late'),
      /no/,
    )
  })

  test('counts what arrived while this thread was busy for longer than that', async (t) => {
    const got = deferred<string>()
    const server = createServer((socket) => socket.on('data', () => got.resolve('in time')))
    t.after(() => server.close())
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const address = server.address()
    const port = typeof address === 'object' ? address?.port : undefined
    // Connects, then writes when it is told to and says so: all while this thread is blocked.
    const flag = new Int32Array(new SharedArrayBuffer(4))
    const worker = new Worker(
      `const { workerData: { port, flag } } = require('node:worker_threads')
       const socket = require('node:net').connect(port, '127.0.0.1', () => {
         Atomics.wait(flag, 0, 0)
         socket.write('x', () => { Atomics.store(flag, 0, 2); Atomics.notify(flag, 0) })
       })`,
      { eval: true, workerData: { port, flag } },
    )
    t.after(() => worker.terminate())
    await new Promise((resolve) => server.once('connection', resolve))
    const result = withinMs(got.promise, 1, () => 'late')
    Atomics.store(flag, 0, 1)
    Atomics.notify(flag, 0)
    // Far longer than the millisecond, and then until the write is done.
    while (Atomics.load(flag, 0) !== 2) Atomics.wait(flag, 0, 1, 50)
    assert.equal(await result, 'in time')
  })
})
