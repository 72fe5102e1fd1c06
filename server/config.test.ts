import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { inspect } from 'node:util'
import { configHelp, parseServerConfig, printConfig } from './config.js'
import { KNOBS } from './knobs.js'

const BUNDLE = ['--bundle', 'bundles/toy']

describe('parseServerConfig', () => {
  test('takes flags before variables before defaults, says which, and is frozen', () => {
    const env = { PEREGRINE_PORT: '9000', PEREGRINE_MAX_CANDIDATES: '500', PATH: '/bin' }
    const { config, sources } = parseServerConfig([...BUNDLE, '--port', '9001'], env)
    assert.equal(config.port, 9001)
    assert.equal(config.maxCandidates, 500)
    assert.equal(config.host, '127.0.0.1')
    assert.equal(sources.get('port'), 'flag')
    assert.equal(sources.get('maxCandidates'), 'env')
    assert.equal(sources.get('host'), 'default')
    assert.deepEqual([...sources.keys()], Object.keys(KNOBS))
    assert.ok(Object.isFrozen(config))
  })

  test('has the defaults that the help names', () => {
    const { config } = parseServerConfig(BUNDLE, {})
    assert.deepEqual(config, {
      bundle: 'bundles/toy',
      modelsDir: '',
      defaultModel: '',
      maxModels: 8,
      promoteRampSec: 20,
      host: '127.0.0.1',
      port: 8080,
      apiKeysFile: '',
      tlsCert: '',
      tlsKey: '',
      tlsClientCa: '',
      corsOrigins: [],
      maxConnections: 4096,
      logLevel: 'info',
      playground: true,
      bodyLimitBytes: 16 * 2 ** 20,
      maxHistoryEvents: 100_000,
      maxCandidates: 20_000,
      maxBatchRequests: 64,
      maxQueueMs: 100,
      bodyBudgetBytes: 256 * 2 ** 20,
      kvBytes: 0,
      kv: 'auto',
      gpuKvBytes: 0,
      engine: 'auto',
      workers: 0,
      threadsPerWorker: 0,
      provider: 'cpu',
      deviceId: 0,
      cudaFallback: false,
      kernels: 'auto',
      microBatchSize: 0,
      redisUrl: '',
      redisCodec: 'fp16',
      kvTtlSec: 86_400,
      redisConnections: 1,
      windowSlack: 0,
      maxStoredEvents: 4096,
      eventsTtlSec: 2_592_000,
      drainDelayMs: 0,
      shutdownTimeoutMs: 10_000,
    })
    assert.match(
      configHelp(),
      /--shutdown-timeout-ms .*default 10000; PEREGRINE_SHUTDOWN_TIMEOUT_MS/,
    )
  })

  test('never shows the password of Redis', () => {
    const url = 'redis://alice:s3cret@cache:6379/1'
    for (const [args, env] of [
      [['--redis-url', url], {}],
      [[], { PEREGRINE_REDIS_URL: url }],
    ] as const) {
      const { config, sources } = parseServerConfig([...BUNDLE, ...args], env)
      assert.equal(config.redisUrl, url)
      const printed = printConfig(config, sources)
      assert.match(
        String(printed.redisUrl),
        /^"redis:\/\/alice:\*\*\*@cache:6379\/1" \((flag|env)\)$/,
      )
      assert.deepEqual(Object.keys(printed), Object.keys(config))
      for (const bad of [`${url}/2`, `x${url}`, url.replace('@', ''), `${url}:x`]) {
        const refused = () =>
          args.length > 0
            ? parseServerConfig([...BUNDLE, '--redis-url', bad], {})
            : parseServerConfig(BUNDLE, { PEREGRINE_REDIS_URL: bad })
        assert.throws(refused, (error: Error) => {
          assert.match(error.message, /^(--redis-url|PEREGRINE_REDIS_URL): a Redis URL must /)
          assert.doesNotMatch(inspect(error).replace(/\n\s+at .*/g, ''), /s3cret/)
          return true
        })
      }
    }
    assert.match(configHelp(), /--redis-url .*default none/)
  })

  test('reads switches as flags, their negation, and variables', () => {
    const read = (args: string[], env = {}) =>
      parseServerConfig([...BUNDLE, ...args], env).config.cudaFallback
    assert.equal(read(['--cuda-fallback']), true)
    assert.equal(read(['--no-cuda-fallback'], { PEREGRINE_CUDA_FALLBACK: 'true' }), false)
    assert.equal(read([], { PEREGRINE_CUDA_FALLBACK: 'true' }), true)
    const off = parseServerConfig([...BUNDLE, '--no-playground'], {})
    assert.equal(off.config.playground, false)
  })

  test('reads origins with commas between them', () => {
    const origins = (text: string) =>
      parseServerConfig([...BUNDLE, '--cors-origins', text], {}).config.corsOrigins
    assert.deepEqual(origins('https://a.example, http://localhost:3000'), [
      'https://a.example',
      'http://localhost:3000',
    ])
    assert.deepEqual(origins('*'), ['*'])
  })

  test('ignores what Kubernetes sets beside a service called peregrine', () => {
    parseServerConfig(BUNDLE, {
      PEREGRINE_SERVICE_HOST: '10.0.0.1',
      PEREGRINE_PORT_80_TCP: 'tcp://',
    })
  })

  for (const [name, args, env, message] of [
    ['an empty bundle', ['--bundle', ''], {}, /^--bundle must be the path .*, got ""$/],
    ['an unknown flag', [...BUNDLE, '--prot', '1'], {}, /--prot/],
    ['a stray argument', [...BUNDLE, 'now'], {}, /now/],
    [
      'a port too high',
      [...BUNDLE, '--port=65536'],
      {},
      /^--port must be an integer from 0 to 65535, got "65536"$/,
    ],
    ['a port in hex', [...BUNDLE, '--port=0x50'], {}, /got "0x50"$/],
    ['a negative count', [...BUNDLE, '--workers=-1'], {}, /got "-1"$/],
    [
      'an unknown provider',
      BUNDLE,
      { PEREGRINE_PROVIDER: 'tpu' },
      /^PEREGRINE_PROVIDER must be one of cpu, cuda, got "tpu"$/,
    ],
    [
      'an origin with a path',
      [...BUNDLE, '--cors-origins=https://a.example,https://b.example/x'],
      {},
      /^--cors-origins must be \* or origins .*, got "https:\/\/a.example,https:\/\/b.example\/x"$/,
    ],
    [
      'a certificate without its key',
      BUNDLE,
      { PEREGRINE_TLS_CERT: 'tls.crt' },
      /need each other, got --tls-cert without --tls-key$/,
    ],
    [
      'an authority of clients without TLS',
      [...BUNDLE, '--tls-client-ca=ca.crt'],
      {},
      /^--tls-client-ca needs --tls-cert and --tls-key, got none$/,
    ],
    ['an unknown K/V mode', [...BUNDLE, '--kv=on'], {}, /one of auto, always, never, got "on"$/],
    ['an unknown engine', [...BUNDLE, '--engine=tf'], {}, /one of auto, capi, node, got "tf"$/],
    [
      'more K/V on the GPU than there is K/V',
      [...BUNDLE, '--kv-bytes=5', '--gpu-kv-bytes=6'],
      {},
      /^--gpu-kv-bytes must be at most --kv-bytes \(5\), which counts it, got 6$/,
    ],
    [
      'a switch that is neither',
      BUNDLE,
      { PEREGRINE_CUDA_FALLBACK: '1' },
      /must be true or false, got "1"$/,
    ],
    [
      'an unknown variable',
      BUNDLE,
      { PEREGRINE_PROT: '1' },
      /^unknown variable PEREGRINE_PROT: expected one of PEREGRINE_BUNDLE/,
    ],
    ['a Kubernetes link as port', BUNDLE, { PEREGRINE_PORT: 'tcp://10.0.0.1:80' }, /service link/],
    [
      'a body larger than all may be',
      [...BUNDLE, '--body-budget-bytes=2048'],
      {},
      /^--body-limit-bytes must be at most --body-budget-bytes \(2048\), got 16777216$/,
    ],
  ] as const) {
    test(`refuses ${name}`, () => {
      assert.throws(() => parseServerConfig(args, env), { code: 'CONFIG_INVALID', message })
    })
  }
})
