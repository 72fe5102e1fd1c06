import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { EventEmitter, once } from 'node:events'
import { Agent, request as httpRequest } from 'node:http'
import { text } from 'node:stream/consumers'
import { describe, test } from 'node:test'
import type { Ranker } from '../falcon/types.js'
import { deferred } from '../model/deferred.js'
import { RankError } from '../model/errors.js'
import { rankerOf, resultOf, TOY } from '../test/plain-ranker.js'
import { parseServerConfig } from './config.js'
import { createLogger } from './log.js'
import { serve } from './serve.js'

const GOOD = { user: { id: 'u' }, candidates: ['a', 'b'] }

async function served(loadRanker: () => Promise<Ranker>, ...flags: string[]) {
  const lines: string[] = []
  const exits: number[] = []
  const kills: string[] = []
  const signals = new EventEmitter()
  const server = await serve({
    ...parseServerConfig(['--bundle', 'toy', '--port', '0', ...flags], {}),
    peek: () => TOY,
    loadRanker,
    log: createLogger('info', { write: (line) => void lines.push(line) }),
    signals,
    forceExit: () => kills.push('SIGKILL'),
    setExitCode: (code) => exits.push(code),
  })
  return { ...server, lines, exits, kills, signals }
}

async function rank(
  url: string,
  agent?: Agent,
): Promise<{ status: number; connection: string; body: string }> {
  const headers = { 'content-type': 'application/json' }
  const request = httpRequest(`${url}/v1/rank`, { method: 'POST', headers, agent })
  request.end(JSON.stringify(GOOD))
  const [response] = await once(request, 'response')
  const { statusCode, headers: got } = response
  return { status: statusCode, connection: got.connection, body: await text(response) }
}

async function status(url: string): Promise<number> {
  return (await fetch(url, { headers: { connection: 'close' } })).status
}

describe('serve', () => {
  test('answers /livez while loading, ranks when loaded, and says how', async () => {
    const gate = deferred<Ranker>()
    const { url, loaded, stop, lines, exits } = await served(() => gate.promise)
    assert.equal(await status(`${url}/livez`), 200)
    assert.equal(await status(`${url}/readyz`), 503)
    assert.equal((await rank(url)).status, 503)
    gate.resolve(rankerOf())
    assert.equal(await loaded, true)
    assert.equal(await status(`${url}/readyz`), 200)
    assert.equal((await rank(url)).status, 200)
    assert.match(await (await fetch(`${url}/metrics`)).text(), /nodejs_eventloop_lag_seconds/)
    await stop('test')
    assert.deepEqual(exits, [])
    const log = lines.join('')
    assert.match(log, /"port":"0 \(flag\)".*"shutdownTimeoutMs":"10000 \(default\)"/)
    assert.ok(log.includes(`try it at ${url}/, `))
    assert.ok(log.includes(`curl ${url}/v1/rank`))
    assert.ok(!log.includes('exampleItems'), 'no item ids in logs')
  })

  test('on SIGTERM finishes what is in flight, refuses new connections, then closes the ranker', async () => {
    const arrived = deferred<void>()
    const gate = deferred<void>()
    const closed: string[] = []
    const ranker = rankerOf(
      async (input) => {
        arrived.resolve()
        await gate.promise
        closed.push('ranked')
        return resultOf(input)
      },
      async () => {
        closed.push('closed')
      },
    )
    const { url, loaded, stopped, signals, exits, kills } = await served(async () => ranker)
    await loaded
    const answer = rank(url)
    await arrived.promise
    signals.emit('SIGTERM', 'SIGTERM')
    await assert.rejects(async () => {
      // The listener closes within the next turns of the event loop.
      for (let i = 0; i < 100; i++) await status(`${url}/readyz`)
    })
    gate.resolve()
    assert.equal((await answer).status, 200)
    await stopped
    assert.deepEqual(closed, ['ranked', 'closed'])
    assert.deepEqual(exits, [0])
    assert.deepEqual(kills, [])
    assert.equal(signals.listenerCount('SIGTERM') + signals.listenerCount('SIGINT'), 0)
  })

  test('with a drain delay it still takes connections while /readyz is 503, and sends them away', async (t) => {
    const { url, loaded, stopped, signals } = await served(
      async () => rankerOf(),
      '--drain-delay-ms=5000',
    )
    await loaded
    t.mock.timers.enable({ apis: ['setTimeout'] })
    const agent = new Agent({ keepAlive: true })
    t.after(() => agent.destroy())
    assert.equal((await rank(url, agent)).connection, 'keep-alive')
    signals.emit('SIGTERM', 'SIGTERM')
    t.mock.timers.tick(4999)
    assert.equal(await status(`${url}/readyz`), 503)
    assert.equal(await status(`${url}/livez`), 200)
    for (const connection of [agent, undefined]) {
      const answer = await rank(url, connection)
      assert.deepEqual([answer.status, answer.connection], [200, 'close'])
    }
    t.mock.timers.tick(1)
    await stopped
    await assert.rejects(rank(url), { code: 'ECONNREFUSED' })
  })

  test('a drain delay is not waited for before the model is there', async () => {
    const gate = deferred<Ranker>()
    const { stopped, signals } = await served(() => gate.promise, '--drain-delay-ms=600000')
    signals.emit('SIGTERM', 'SIGTERM')
    gate.resolve(rankerOf())
    await stopped
  })

  test('a drain that takes too long closes the connections', async () => {
    const arrived = deferred<void>()
    const ranker = rankerOf(async () => {
      arrived.resolve()
      return new Promise(() => {})
    })
    const { url, loaded, stopped, signals, lines } = await served(
      async () => ranker,
      '--shutdown-timeout-ms=0',
    )
    await loaded
    const answer = assert.rejects(rank(url), { code: 'ECONNRESET' })
    await arrived.promise
    signals.emit('SIGINT', 'SIGINT')
    await stopped
    await answer
    assert.match(lines.join(''), /drain timed out/)
  })

  test('a second signal kills', async () => {
    const gate = deferred<void>()
    const ranker = rankerOf(undefined, () => gate.promise)
    const { loaded, stopped, signals, kills } = await served(async () => ranker)
    await loaded
    signals.emit('SIGTERM', 'SIGTERM')
    assert.deepEqual(kills, [])
    signals.emit('SIGTERM', 'SIGTERM')
    assert.deepEqual(kills, ['SIGKILL'])
    gate.resolve()
    await stopped
  })

  test('a signal while loading waits for the load, then closes what was loaded', async () => {
    const gate = deferred<Ranker>()
    const closed: string[] = []
    const { stopped, signals, exits } = await served(() => gate.promise)
    signals.emit('SIGTERM', 'SIGTERM')
    gate.resolve(
      rankerOf(undefined, async () => {
        closed.push('closed')
      }),
    )
    await stopped
    assert.deepEqual(closed, ['closed'])
    assert.deepEqual(exits, [0])
  })

  test('a load that fails is logged, closes the server and sets exit code 1', async () => {
    const { url, loaded, stopped, exits, lines } = await served(async () => {
      throw new RankError('BUNDLE_INVALID', 'toy/manifest.json is missing')
    })
    assert.equal(await loaded, false)
    await stopped
    assert.deepEqual(exits, [1])
    assert.match(lines.join(''), /"level":"fatal".*toy\/manifest.json is missing/)
    await assert.rejects(rank(url))
  })

  test('a ranker that fails to close is logged and sets exit code 1', async () => {
    const ranker = rankerOf(undefined, async () => {
      throw new Error('stuck')
    })
    const { loaded, stopped, signals, exits } = await served(async () => ranker)
    await loaded
    signals.emit('SIGTERM', 'SIGTERM')
    await stopped
    assert.deepEqual(exits, [0, 1])
  })

  test('an address in use is CONFIG_INVALID', async () => {
    const first = await served(async () => rankerOf())
    const port = new URL(first.url).port
    await assert.rejects(
      served(async () => rankerOf(), `--port=${port}`),
      { code: 'CONFIG_INVALID', message: /^cannot listen on 127.0.0.1:\d+: .*EADDRINUSE/ },
    )
    await first.stop('test')
  })
})

describe('a process of its own', () => {
  const start = (rank: string) => {
    const url = (file: string) => JSON.stringify(new URL(file, import.meta.url).href)
    const code = `
      import { parseServerConfig } from ${url('./config.js')}
      import { rankerOf, resultOf } from ${url('../test/plain-ranker.js')}
      import { serve } from ${url('./serve.js')}
      const keepAlive = setInterval(() => {}, 1000) // as the workers of an engine do
      const ranker = rankerOf(${rank}, async () => clearInterval(keepAlive))
      const { url, loaded } = await serve({
        ...parseServerConfig(['--bundle', 'toy', '--port', '0'], {}),
        peek: () => (${JSON.stringify(TOY)}),
        loadRanker: async () => ranker,
      })
      await loaded
      process.send(url)`
    const child = spawn(process.execPath, ['--input-type=module', '-e', code], {
      stdio: ['ignore', 'pipe', 'inherit', 'ipc'],
    })
    const { stdout } = child
    assert.ok(stdout !== null)
    return { child, stdout }
  }

  test('ends with code 0 after SIGTERM, its last answer given and its logs written', async () => {
    const { child, stdout } = start(`async (input) => {
      process.send('arrived')
      await new Promise((resolve) => process.once('message', resolve))
      process.disconnect()
      return resultOf(input)
    }`)
    const output = text(stdout)
    const [url] = await once(child, 'message')
    const answer = rank(url)
    await once(child, 'message')
    child.kill('SIGTERM')
    child.send('go on')
    assert.equal((await answer).status, 200)
    assert.deepEqual(await once(child, 'exit'), [0, null])
    assert.match(await output, /"why":"SIGTERM"(.|\n)*"msg":"stopped"/)
  })

  test('is killed by the second signal', async () => {
    const { child, stdout } = start(`async () => {
      process.send('arrived')
      return new Promise(() => {})
    }`)
    const [url] = await once(child, 'message')
    const answer = assert.rejects(rank(url))
    await once(child, 'message')
    const draining = new Promise<void>((resolve) => {
      stdout.on('data', (chunk) => {
        if (String(chunk).includes('draining')) resolve()
      })
    })
    child.kill('SIGTERM')
    await draining
    child.kill('SIGINT')
    assert.deepEqual(await once(child, 'exit'), [null, 'SIGKILL'])
    await answer
  })
})
