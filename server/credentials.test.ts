import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { EventEmitter, once } from 'node:events'
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs'
import { Agent, request as httpsRequest, type RequestOptions } from 'node:https'
import { text } from 'node:stream/consumers'
import { after, describe, type TestContext, test } from 'node:test'
import { TLSSocket } from 'node:tls'
import { tempFolder } from '../test/fixtures.js'
import { rankerOf, TOY } from '../test/plain-ranker.js'
import { type Certificates, makeCertificates, until } from '../test/redis.js'
import { parseServerConfig } from './config.js'
import { openCredentials } from './credentials.js'
import { digestOf } from './key-file.js'
import { createLogger } from './log.js'
import { serve } from './serve.js'

const NO_OPENSSL = hasOpenssl() ? false : "no openssl on PATH: install Debian's package openssl"

function hasOpenssl(): boolean {
  try {
    execFileSync('openssl', ['version'], { stdio: 'ignore' })
    return true
  } catch {
    return process.env.REQUIRE_REDIS === '1'
  }
}

/** A server of those flags, its log and its signals. */
async function served(t: TestContext, ...flags: string[]) {
  const lines: string[] = []
  const signals = new EventEmitter()
  const server = await serve({
    ...parseServerConfig(['--bundle', 'toy', '--port', '0', '--host', '127.0.0.1', ...flags], {}),
    peek: () => TOY,
    loadRanker: async () => rankerOf(),
    log: createLogger('info', { write: (line) => void lines.push(line) }),
    signals,
    setExitCode: () => {},
  })
  t.after(() => server.stop('the test is over'))
  await server.loaded
  return { ...server, lines, signals }
}

async function get(url: string, options: RequestOptions = {}) {
  const request = httpsRequest(url, { agent: false, ...options })
  request.end()
  const [response] = await once(request, 'response')
  assert.ok(response.socket instanceof TLSSocket)
  const { fingerprint256 } = response.socket.getPeerCertificate()
  return { status: response.statusCode, body: await text(response), fingerprint256 }
}

function keysOf(...names: string[]): string {
  const sha256 = (name: string) => digestOf(`secret-of-${name}`).toString('hex')
  return JSON.stringify({
    keys: names.map((name) => ({ name, sha256: sha256(name), scopes: ['rank'] })),
  })
}

describe('TLS', { skip: NO_OPENSSL }, () => {
  const ours = makeCertificates({ after })
  const others = makeCertificates({ after })
  const ca = (of: Certificates) => ({ ca: readFileSync(of.ca) })
  const client = (of: Certificates) => ({ cert: readFileSync(of.cert), key: readFileSync(of.key) })

  /** Copies, which a test may replace. */
  function files(t: TestContext) {
    const folder = tempFolder(t)
    const paths = { cert: `${folder}/tls.crt`, key: `${folder}/tls.key` }
    const put = (of: Certificates) => {
      copyFileSync(of.key, paths.key)
      copyFileSync(of.cert, paths.cert)
    }
    put(ours)
    return { ...paths, put, flags: ['--tls-cert', paths.cert, '--tls-key', paths.key] }
  }

  test('serves HTTPS only, from version 1.2 on, and says so in its URL and headers', async (t) => {
    const { url, lines } = await served(t, ...files(t).flags)
    assert.match(url, /^https:/)
    assert.ok(lines.join('').includes(`curl ${url}/v1/rank`))
    assert.equal((await get(`${url}/readyz`, ca(ours))).status, 200)
    await assert.rejects(fetch(url.replace('https', 'http')))
    await assert.rejects(get(`${url}/readyz`, ca(others)), /unable to verify|self-signed/)
    await assert.rejects(get(`${url}/readyz`, { ...ca(ours), maxVersion: 'TLSv1.1' }))
  })

  test('takes new certificates on SIGHUP; what is connected goes on', async (t) => {
    const { put, flags } = files(t)
    const { url, signals } = await served(t, ...flags)
    const agent = new Agent({ keepAlive: true, maxSockets: 1, ...ca(ours) })
    t.after(() => agent.destroy())
    const before = await get(`${url}/livez`, { agent })
    put(others)
    signals.emit('SIGHUP', 'SIGHUP')
    const kept = await get(`${url}/livez`, { agent })
    assert.equal(kept.fingerprint256, before.fingerprint256)
    const fresh = await get(`${url}/livez`, ca(others))
    assert.equal(fresh.status, 200)
    assert.notEqual(fresh.fingerprint256, before.fingerprint256)
    await assert.rejects(get(`${url}/livez`, ca(ours)), /unable to verify|self-signed/)
  })

  test('keeps its certificate when the new one cannot be used, and says why', async (t) => {
    const { key, cert, flags } = files(t)
    const { url, signals, lines } = await served(t, ...flags)
    copyFileSync(others.key, key)
    signals.emit('SIGHUP', 'SIGHUP')
    writeFileSync(cert, 'no PEM')
    signals.emit('SIGHUP', 'SIGHUP')
    assert.equal((await get(`${url}/livez`, ca(ours))).status, 200)
    const faults = lines.filter((line) => line.includes('"level":"error"'))
    assert.equal(faults.length, 2)
    for (const fault of faults) assert.match(fault, /must be PEM files that fit each other/)
  })

  test('asks clients for a certificate of the authority, but for the probes', async (t) => {
    const { url } = await served(t, ...files(t).flags, '--tls-client-ca', ours.ca)
    const models = `${url}/v1/models`
    assert.equal((await get(models, { ...ca(ours), ...client(ours) })).status, 200)
    for (const [options, why] of [
      [{}, 'UNABLE_TO_GET_ISSUER_CERT'],
      [client(others), 'UNABLE_TO_VERIFY_LEAF_SIGNATURE'],
    ] as const) {
      const { status, body } = await get(models, { ...ca(ours), ...options })
      assert.equal(status, 401)
      assert.deepEqual(JSON.parse(body), {
        code: 'UNAUTHENTICATED',
        message: `needs a client certificate of ours, got ${why}`,
      })
      for (const path of ['/', '/docs/json', '/metrics', '/nowhere']) {
        assert.equal((await get(url + path, { ...ca(ours), ...options })).status, 401, path)
      }
      assert.equal((await get(`${url}/livez`, { ...ca(ours), ...options })).status, 200)
      assert.equal((await get(`${url}/readyz`, { ...ca(ours), ...options })).status, 200)
    }
  })

  test('does not start with files that cannot be used', async (t) => {
    for (const [flags, message] of [
      [['--tls-cert', ours.cert, '--tls-key', others.key], /must be PEM files that fit each other/],
      [
        ['--tls-cert', `${ours.cert}.none`, '--tls-key', ours.key],
        /cannot read a TLS file: ENOENT/,
      ],
    ] as const) {
      await assert.rejects(served(t, ...flags), { code: 'CONFIG_INVALID', message })
    }
  })
})

describe('credentials', () => {
  test('are read again on SIGHUP, a broken file changes nothing', async (t) => {
    const file = `${tempFolder(t)}/keys.json`
    writeFileSync(file, keysOf('one'))
    const { url, signals, lines } = await served(t, '--api-keys-file', file)
    const status = async (name: string) =>
      (await fetch(`${url}/v1/models`, { headers: { 'x-api-key': `secret-of-${name}` } })).status
    assert.deepEqual([await status('one'), await status('two')], [200, 401])
    writeFileSync(file, keysOf('two'))
    signals.emit('SIGHUP', 'SIGHUP')
    assert.deepEqual([await status('one'), await status('two')], [401, 200])
    writeFileSync(file, '{"keys": []}')
    signals.emit('SIGHUP', 'SIGHUP')
    assert.deepEqual([await status('one'), await status('two')], [401, 200])
    assert.match(lines.join(''), /"level":"error".*not read: what was there before stays/)
    assert.doesNotMatch(lines.join(''), /secret-of/)
  })

  test('are read again when their file is another', async (t) => {
    const file = `${tempFolder(t)}/keys.json`
    writeFileSync(file, keysOf('one'))
    const { config } = parseServerConfig(['--api-keys-file', file], {})
    const credentials = openCredentials(config, createLogger('silent'), 10)
    t.after(() => credentials.close())
    const names = () => credentials.keys?.().map(({ name }) => name)
    assert.deepEqual(names(), ['one'])
    writeFileSync(file, keysOf('two', 'three'))
    await until('the new keys', () => names()?.length === 2)
    assert.deepEqual(names(), ['two', 'three'])
  })

  test('SIGHUP is left alone where there is nothing to read again', async (t) => {
    const { signals } = await served(t)
    assert.equal(signals.listenerCount('SIGHUP'), 0)
  })

  test('without keys a warning says so where others can reach the server', () => {
    const warnings = (...flags: string[]) => {
      const lines: string[] = []
      const { config } = parseServerConfig(flags, {})
      const log = createLogger('warn', { write: (line) => void lines.push(line) })
      openCredentials(config, log).close()
      return lines.length
    }
    for (const host of ['127.0.0.1', '127.1.2.3', '::1', 'localhost']) {
      assert.equal(warnings('--host', host), 0, host)
    }
    for (const host of ['0.0.0.0', '::', '10.0.0.7', '127.example.com', 'box']) {
      assert.equal(warnings('--host', host), 1, host)
    }
  })
})
