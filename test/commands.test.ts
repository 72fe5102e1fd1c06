import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, readdirSync, writeFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { digestOf, readKeyFile } from '../server/key-file.js'
import { tempFolder } from './fixtures.js'

const CLI = fileURLToPath(new URL('../server/cli.js', import.meta.url))
const GOLDEN = 'test/golden/paper/limit'

function peregrine(...args: string[]) {
  return peregrineIn('.', ...args)
}

function peregrineIn(cwd: string, ...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [CLI, ...args], {
    cwd,
    encoding: 'utf8',
  })
  return { status, stdout, stderr }
}

/** A user's mistake: exit code not 0, a sentence, no stack. */
function assertRefused(result: ReturnType<typeof peregrine>, message: RegExp) {
  assert.notEqual(result.status, 0)
  assert.match(result.stderr, message)
  assert.doesNotMatch(result.stderr, /\n\s+at /)
}

describe('the commands', () => {
  const folder = tempFolder({ after })
  const bundle = `${folder}/demo`

  test('export, verify and rank work one after the other on the demo model', () => {
    const exported = peregrine('export', '--from', 'demo/kuairand', '--out', bundle)
    assert.equal(exported.status, 0, exported.stderr)
    assert.match(exported.stdout, /^kuairand-demo@[0-9a-f]{16} fp32, \d+ files in /)
    for (const [engine, name] of [
      ['auto', 'capi'],
      ['node', 'node'],
    ] as const) {
      const verified = peregrine('verify', bundle, '--engine', engine)
      assert.equal(verified.status, 0, verified.stderr)
      const line = new RegExp(`^${name}/cpu: 6 test vectors, largest difference \\d`, 'm')
      assert.match(verified.stdout, line)
    }
    const ranked = peregrine(
      'rank',
      '--bundle',
      bundle,
      '--request',
      'demo/kuairand/requests/0007.json',
    )
    assert.equal(ranked.status, 0, ranked.stderr)
    assert.equal(JSON.parse(ranked.stdout).items.length, 100)
  })

  test('export --random writes a bundle of the asked shape that verifies', () => {
    const shape = [
      '--layers',
      '2',
      '--d-model',
      '32',
      '--heads',
      '2',
      '--max-tokens',
      '64',
      '--items',
      '50',
    ]
    const out = `${folder}/random`
    const exported = peregrine(
      'export',
      '--random',
      ...shape,
      '--seed',
      '3',
      '--precision',
      'fp16',
      '--out',
      out,
    )
    assert.equal(exported.status, 0, exported.stderr)
    assert.match(exported.stdout, /^random-l2-d32-h2-n64@/)
    assert.equal(peregrine('verify', out).status, 0)
  })

  test('export of a large table shows its progress, and says what the rows’ type costs', () => {
    const small = ['--layers', '1', '--heads', '2', '--max-tokens', '16', '--table', 'int8']
    const shape = ['--items', '140000', '--d-model', '128', ...small]
    const out = `${folder}/large`
    const exported = peregrine('export', '--random', '--out', out, ...shape)
    assert.equal(exported.status, 0, exported.stderr)
    const shares = [...exported.stderr.matchAll(/^export embedding .+ (\d+) % \(\d+\//gm)]
    assert.ok(shares.length >= 3, exported.stderr)
    assert.equal(shares.at(-1)?.[1], '100')
    const cost =
      /^int8 table: logits of the sample requests within (\S+) of those with float32 rows$/m
    assert.ok(Number(cost.exec(exported.stdout)?.[1]) < 0.1, exported.stdout)
    const verified = peregrine('verify', out)
    assert.equal(verified.status, 0, verified.stderr)
    assertRefused(
      peregrine('export', '--random', '--out', `${folder}/wide`, ...shape, '--table', 'fp64'),
      /--table must be fp32, fp16 or int8 in fp32, got fp64/,
    )
  })

  test('the demo’s bundle makes itself, and never in place of another model’s', () => {
    writeFileSync(`${folder}/one.json`, '{"user":{"id":"u"},"time":1000,"candidates":["1"]}')
    const modelOf = () => {
      const { status, stdout, stderr } = peregrineIn(folder, 'rank', '--request', 'one.json')
      assert.equal(status, 0, stderr)
      return JSON.parse(stdout).model
    }
    assert.match(modelOf(), /^kuairand-demo@/)
    const shape = [
      '--layers',
      '1',
      '--d-model',
      '16',
      '--heads',
      '1',
      '--max-tokens',
      '32',
      '--items',
      '9',
    ]
    const own = peregrineIn(folder, 'export', '--random', ...shape, '--out', 'bundles/kuairand')
    assert.equal(own.status, 0, own.stderr)
    assert.match(modelOf(), /^random-l1-d16-h1-n32@/)
  })

  test('golden exits 0 within the tolerance and 1 past it', () => {
    const passed = peregrine('golden', GOLDEN)
    assert.equal(passed.status, 0, passed.stderr)
    assert.match(passed.stdout, /^PASS /m)
    assert.match(passed.stdout, /^capi\/cpu fp32 /m)
    const failed = peregrine('golden', GOLDEN, '--tolerance', '1e-12')
    assert.equal(failed.status, 1)
    assert.match(failed.stdout, /^FAIL .*tolerance 1e-12$/m)
  })

  test('golden takes cases of the public code’s checkpoints, and says when they are of another variant', () => {
    for (const [name, other] of [
      ['research/one-head', 'dlrm-v3/months'],
      ['dlrm-v3/months', 'research/one-head'],
    ]) {
      const passed = peregrine('golden', `test/golden/${name}`)
      assert.equal(passed.status, 0, passed.stderr)
      assert.match(passed.stdout, /^PASS /m)
      const mixed = `${folder}/mixed`
      cpSync(`test/golden/${name}`, mixed, { recursive: true })
      cpSync(`test/golden/${other}/weights.safetensors`, `${mixed}/weights.safetensors`)
      assertRefused(
        peregrine('export', '--from', mixed, '--out', `${folder}/never`),
        /WEIGHTS_INVALID: tensor \S+ is missing: expected shape .* is a tensor of variant/,
      )
    }
  })

  test('export --random writes every variant', () => {
    const shape = ['--layers', '1', '--d-model', '16', '--heads', '2', '--max-tokens', '20']
    for (const variant of ['research', 'dlrm-v3']) {
      const out = `${folder}/random-${variant}`
      const asked = ['--variant', variant, ...shape, '--items', '50', '--out', out]
      const exported = peregrine('export', '--random', ...asked)
      assert.equal(exported.status, 0, exported.stderr)
      assert.match(exported.stdout, new RegExp(`^random-${variant}-l1-d16-h2-n20@`))
      const verified = peregrine('verify', out)
      assert.equal(verified.status, 0, verified.stderr)
    }
    assertRefused(
      peregrine('export', '--random', '--variant', 'other', '--out', `${folder}/never`),
      /--variant must be one of paper, research, dlrm-v3, got other/,
    )
  })

  test('golden fails on weights that are not the case’s own', () => {
    const wrong = `${folder}/wrong`
    cpSync(GOLDEN, wrong, { recursive: true })
    cpSync('test/golden/paper/plain/weights.safetensors', `${wrong}/weights.safetensors`)
    assertRefused(
      peregrine('golden', wrong),
      /WEIGHTS_INVALID: tensor \S+ (is missing|must have shape)/,
    )
  })

  test('refuse what they cannot use with a sentence and no stack', () => {
    writeFileSync(`${folder}/broken.json`, '{"user":')
    const cases: [args: string[], message: RegExp][] = [
      [['fly'], /unknown command "fly"/],
      [[], /unknown command ""/],
      [['export'], /export needs --out and either --from or --random/],
      [
        ['export', '--from', `${folder}/none`, '--out', `${folder}/x`],
        /CONFIG_INVALID: cannot read .*none\/config.json/,
      ],
      [
        ['export', '--random', '--out', `${folder}/x`, '--layers', '0'],
        /--layers must be an integer from 1 to 256, got "0"/,
      ],
      [
        ['export', '--random', '--out', `${folder}/x`, '--heads', '7'],
        /--d-model must be a multiple of --heads/,
      ],
      [
        ['export', '--random', '--out', `${folder}/x`, '--precision', 'int8'],
        /--precision must be fp32 or fp16, got int8/,
      ],
      [['export', '--random', '--out', folder, '--layers', '1'], /exists and is no bundle/],
      [['verify'], /verify needs the folder of a bundle/],
      [['verify', `${folder}/none`], /no such folder/],
      [['verify', folder], /BUNDLE_INVALID: cannot read .*manifest.json/],
      [['golden', GOLDEN, '--engine', 'tf'], /--engine must be auto or capi or node, got tf/],
      [['golden', GOLDEN, '--provider', 'tpu'], /--provider must be cpu or cuda, got tpu/],
      [
        ['golden', GOLDEN, '--tolerance', 'much'],
        /--tolerance must be a positive number, got "much"/,
      ],
      [['rank', '--bundle', bundle], /rank needs --request/],
      [
        ['rank', '--bundle', bundle, '--request', `${folder}/broken.json`],
        /cannot read .* as JSON/,
      ],
      [['eval', '--bundle', bundle], /eval needs --data/],
      [['eval', '--bundle', bundle, '--data', folder], /does not hold KuaiRand-Pure: log_standard/],
      [
        ['eval', '--bundle', bundle, '--data', folder, '--max-events', '9', '--window-slack', '9'],
        /--window-slack must be an integer from 0 to 8, got "9"/,
      ],
      [['serve', '--port', '70000'], /--port must be an integer from 0 to 65535, got "70000"/],
      [['key'], /the key’s \/name must match/],
      [
        ['key', 'web', '--scopes', 'rank,root'],
        /the key’s \/scopes\/1 must match .*rank\|admin\|metrics.*, got "root"/,
      ],
      [['key', 'web', '--share', '0'], /--share must be a positive number, got "0"/],
      [['serve', '--tls-key', 'x'], /--tls-cert and --tls-key need each other, got --tls-key/],
      [['serve', '--api-keys-file', `${folder}/none`], /CONFIG_INVALID: cannot read the API keys/],
      [['verify', '--fast', bundle], /Unknown option '--fast'/],
    ]
    for (const [args, message] of cases) assertRefused(peregrine(...args), message)
    assert.ok(!existsSync(`${folder}/x`))
    assert.deepEqual(
      readdirSync(folder).filter((name) => name.includes('.tmp-')),
      [],
    )
  })

  test('key prints a key once, and an entry with its hash that the service takes', () => {
    const { status, stdout } = peregrine('key', 'web', '--scopes', 'rank,metrics', '--share', '2')
    assert.equal(status, 0)
    const [, secret = '', entry = ''] = /^key {4}(pgr_\S+)\nentry {2}(\{.*\})\n$/.exec(stdout) ?? []
    writeFileSync(`${folder}/keys.json`, `{"keys": [${entry}]}`)
    assert.deepEqual(readKeyFile(`${folder}/keys.json`), [
      { name: 'web', scopes: ['rank', 'metrics'], share: 2, digest: digestOf(secret) },
    ])
    assert.ok(!entry.includes(secret))
  })

  test('each has help', () => {
    for (const command of ['serve', 'export', 'verify', 'golden', 'rank', 'eval', 'key']) {
      const { status, stdout } = peregrine(command, '--help')
      assert.equal(status, 0)
      assert.match(stdout, new RegExp(`^peregrine ${command} `))
    }
  })

  test('eval replays the test days of a small log through the pipeline', () => {
    const data = `${folder}/data`
    cpSync('demo/kuairand/vocabularies', data, { recursive: true })
    const gzip = (name: string, lines: string[]) =>
      writeFileSync(`${data}/${name}`, gzipSync(`${lines.join('\n')}\n`))
    const log = 'user_id,video_id,date,time_ms,is_click,is_like,long_view,tab'
    const rows = [
      '1,2166,20220504,1651622400000,1,0,1,1',
      '1,832,20220505,1651708800000,1,1,1,1',
      '1,832,20220505,1651708800000,1,1,1,1',
      '1,2126,20220506,1651795200000,0,0,0,1',
      '2,1068,20220505,1651708800500,0,0,0,0',
      '3,1068,20220425,1650844800000,0,0,0,0',
    ]
    gzip('log_standard_0425_0508.csv.gz', [log, ...rows])
    gzip('history_0409_0424_last50.csv.gz', [
      'user_id,pos,video_id,is_like,long_view',
      '1,4,6807,0,1',
      '2,0,6807,1,0',
    ])
    gzip('history_meta.csv.gz', [
      'user_id,history_len,last_time_ms',
      '1,5,1650700000000',
      '2,1,1650700000000',
    ])
    gzip('user_features_pure.csv.gz', [
      'user_id,user_active_degree,fans_user_num_range',
      '1,full_active,"[10,100)"',
    ])
    const { status, stdout, stderr } = peregrine(
      'eval',
      '--bundle',
      bundle,
      '--data',
      data,
      '--max-events',
      '1',
      '--json',
    )
    assert.equal(status, 0, stderr)
    const { tasks, window } = JSON.parse(stdout)
    // User 1's second request; the first finds nothing either way.
    assert.deepEqual(window, { maxEvents: 1, slack: 0, full: 1, rebuilt: 1 })
    assert.deepEqual(
      tasks.map(({ task, rows }: { task: string; rows: number }) => [task, rows]),
      [
        ['click', 3],
        ['long_view', 3],
        ['like', 3],
      ],
    )
    for (const { auc, ne, logLoss } of tasks) {
      assert.ok([0, 0.5, 1].includes(auc) && ne > 0 && logLoss > 0, JSON.stringify(tasks))
    }
    assert.match(stderr, /eval kuairand-demo .* 100 % \(3\/3/)
  })
})
