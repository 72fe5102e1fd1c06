import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { inspect } from 'node:util'
import { RankError } from '../model/errors.js'
import { tempFolder } from '../test/fixtures.js'
import { parseRedisUrl, redactRedisUrl } from './redis-url.js'

describe('parseRedisUrl', () => {
  for (const [url, expected] of [
    ['redis://cache', { kind: 'single', addresses: [{ host: 'cache', port: 6379 }], db: 0 }],
    [
      'redis://alice:s3cret@10.0.0.1:6380/15',
      {
        kind: 'single',
        addresses: [{ host: '10.0.0.1', port: 6380 }],
        username: 'alice',
        password: 's3cret',
        db: 15,
      },
    ],
    [
      'redis://:p%40s%2Fs%3a%23@[::1]:1/',
      { kind: 'single', addresses: [{ host: '::1', port: 1 }], password: 'p@s/s:#', db: 0 },
    ],
    [
      'redis://a%20b:p@ss:w+rd@cache',
      {
        kind: 'single',
        addresses: [{ host: 'cache', port: 6379 }],
        username: 'a b',
        password: 'p@ss:w+rd',
        db: 0,
      },
    ],
    [
      'rediss://cache:65535/1',
      { kind: 'single', addresses: [{ host: 'cache', port: 65_535 }], tls: {}, db: 1 },
    ],
    [
      'redis-cluster://:secret@a,b:7001,[fe80::2]:7002',
      {
        kind: 'cluster',
        addresses: [
          { host: 'a', port: 6379 },
          { host: 'b', port: 7001 },
          { host: 'fe80::2', port: 7002 },
        ],
        password: 'secret',
      },
    ],
    [
      'redis-sentinel://u:p@a,b:5/my%20master?db=2&sentinelUsername=s&sentinelPassword=x+%26y',
      {
        kind: 'sentinel',
        addresses: [
          { host: 'a', port: 26_379 },
          { host: 'b', port: 5 },
        ],
        username: 'u',
        password: 'p',
        master: 'my master',
        db: 2,
        sentinelUsername: 's',
        sentinelPassword: 'x+&y',
      },
    ],
  ] as const) {
    test(`reads ${url}`, () => assert.deepEqual(parseRedisUrl(url), expected))
  }

  test('reads the PEM files that the query names', (t) => {
    const folder = tempFolder(t)
    const pem = (name: string) => {
      const text = `-----BEGIN ${name}-----\n`
      writeFileSync(`${folder}/${name}`, text)
      return text
    }
    const tls = { ca: pem('ca'), cert: pem('cert'), key: pem('key') }
    const query = `ca=${folder}/ca&cert=${folder}/cert&key=${folder}/key`
    for (const url of ['rediss://h', 'rediss-cluster://h', 'rediss-sentinel://h/m']) {
      assert.deepEqual(parseRedisUrl(`${url}?${query}`).tls, tls)
    }
  })

  for (const [url, message] of [
    ['', /^a Redis URL must start with one of redis:\/\/, rediss:\/\/, .*, got none$/],
    ['cache:6379', /got none$/],
    ['http://cache', /got "http"$/],
    ['REDIS://cache', /got "REDIS"$/],
    ['redis://', /must be redis:\/\/\[\[user\]:password@\]host\[:port\]\[\/db\]/],
    ['redis://cache:0', /ports from 1 to 65535/],
    ['redis://cache:65536', /ports from 1 to 65535/],
    ['redis://ca che', /must be redis:/],
    ['redis://a,b', /must have one host, got 2: redis-cluster:\/\/ or redis-sentinel:\/\/\?$/],
    ['redis-cluster://a,,b', /must be redis-cluster:/],
    ['redis-cluster://a/1', /must have no path, got "\/1"$/],
    ['redis-sentinel://a', /must end with the master's name, \/mymaster, got "\/"$/],
    ['redis-sentinel://a/m/n', /got "\/m\/n"$/],
    ['redis://a/x', /must have a number as its database, got "x"$/],
    ['redis-sentinel://a/m?db=-1', /number as its database, got "-1"$/],
    ['redis://a?ca=x', /must have no parameters but none, got "ca"$/],
    ['rediss://a?cafile=x', /must have no parameters but ca, cert, key, got "cafile"$/],
    ['rediss://a?ca=x&ca=x', /must have ca once, got it twice$/],
    ['rediss://a?ca', /must have a value for ca, got none$/],
    ['rediss://a?ca=/no/such/file', /must name a readable PEM file as ca: ENOENT/],
    ['rediss://a?ca=package.json', /must name a PEM file as ca, got "package.json"/],
    ['rediss://a?cert=x', /must have cert and key together, got cert without key$/],
    ['redis://alice@cache', /must have a password behind the user/],
    ['redis://alice:@cache', /must have a password behind the user/],
  ] as const) {
    test(`refuses ${JSON.stringify(url)}`, () => {
      assert.throws(() => parseRedisUrl(url), { code: 'CONFIG_INVALID', message })
    })
  }

  test('never shows a password, neither in an error nor redacted, wherever it breaks the URL', () => {
    const secrets = ['hunter', 'hun%2Fter', 'hu/nter', 'hu?nter', 'hu#nter', 'hu@nter', 'hu%nter']
    const places = [
      (s: string) => `redis://:${s}@cache`,
      (s: string) => `redis://alice:${s}@cache:x`,
      (s: string) => `redis://alice:${s}@cache/1/2`,
      (s: string) => `redis://alice:${s}@`,
      (s: string) => `redis://${s}@cache`,
      (s: string) => `rediss://:${s}@cache?x=1`,
      (s: string) => `redis-cluster://:${s}@a,b/1`,
      (s: string) => `redis-sentinel://:${s}@a/m?db=x`,
      (s: string) => `redis-sentinel://a/m?sentinelPassword=${s}`,
      (s: string) => `redis-sentinel://a/m?db=x&sentinelPassword=${s}`,
      (s: string) => `http://:${s}@cache`,
      (s: string) => `//:${s}@cache`,
    ]
    for (const place of places) {
      for (const secret of secrets) {
        const url = place(secret)
        assert.doesNotMatch(redactRedisUrl(url), /hu|nter/, url)
        try {
          parseRedisUrl(url)
        } catch (error) {
          assert.ok(error instanceof RankError, url)
          assert.doesNotMatch(inspect(error).replace(/\n\s+at .*/g, ''), /hu|nter/, url)
        }
      }
    }
  })
})

describe('redactRedisUrl', () => {
  for (const [url, expected] of [
    ['redis://cache:6379/1', 'redis://cache:6379/1'],
    ['redis://alice:secret@cache', 'redis://alice:***@cache'],
    ['redis://:secret@cache', 'redis://:***@cache'],
    ['rediss-cluster://:x@a,b:1?ca=/c&password=x', 'rediss-cluster://:***@a,b:1?ca=/c&***=***'],
    [
      'redis-sentinel://a/m?db=1&sentinelPassword=x',
      'redis-sentinel://a/m?db=1&sentinelPassword=***',
    ],
    ['redis://a:b', 'redis://***'],
    ['secret', '***'],
  ] as const) {
    test(`makes ${url} ${expected}`, () => assert.equal(redactRedisUrl(url), expected))
  }
})
