// The command against what the ranking pipeline says of the same users, and against the trainer's own evaluation of
// weights that it has just trained. The latter needs PyTorch and safetensors: skipped without, unless REQUIRE_TORCH=1.
import assert from 'node:assert/strict'
import { execFile, spawnSync } from 'node:child_process'
import { EventEmitter } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { loadRanker } from '../falcon/load.js'
import { createRandom } from '../model/random.js'
import { readInteractions } from '../server/commands/interactions.js'
import { parseServerConfig } from '../server/config.js'
import { digestOf } from '../server/key-file.js'
import { createLogger } from '../server/log.js'
import { serve } from '../server/serve.js'
import { tempFolder } from './fixtures.js'

const CLI = fileURLToPath(new URL('../server/cli.js', import.meta.url))
const PYTHON = process.env.PYTHON ?? 'python3'
const RECIPE = 'model/train/research'
const ITEMS = 40

function run(command: string, ...args: string[]): string {
  const env = { ...process.env, OMP_NUM_THREADS: '1' }
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8', env })
  assert.equal(status, 0, stderr)
  return stdout
}

const peregrine = (...args: string[]) => run(process.execPath, CLI, ...args)

/** Users with 2 to 30 events; some times are equal, some unknown. */
function writeLog(file: string, id: (item: number) => string): void {
  const random = createRandom(11)
  const lines = ['user,item,rating,ts']
  for (let user = 1; user <= 24; user++) {
    let time = user === 3 ? -1 : 1_000_000
    const order = Array.from({ length: ITEMS }, (_, i) => i + 1).sort(() => random() - 0.5)
    for (const item of order.slice(0, 2 + Math.floor(random() * 29))) {
      if (user !== 3 && random() < 0.8) time += Math.floor(random() * 1e5)
      lines.push(`u${user},${id(item)},4,${time}`)
    }
  }
  writeFileSync(file, `${lines.join('\n')}\n`)
}

describe('eval-retrieval', () => {
  const folder = tempFolder({ after })
  const [data, bundle, ranks] = [`${folder}/log.csv`, `${folder}/bundle`, `${folder}/ranks.json`]

  test('finds each last event where a ranking of all other items has it', async () => {
    writeLog(data, String)
    peregrine(
      ...['export', '--random', '--variant', 'research', '--out', bundle, '--layers', '1'],
      ...['--d-model', '16', '--heads', '2', '--max-tokens', '8', '--items', String(ITEMS + 1)],
    )
    const printed = JSON.parse(
      peregrine('eval-retrieval', '--data', data, '--bundle', bundle, '--ranks', ranks, '--json'),
    )
    const users = await readInteractions(data)
    assert.equal(printed.users, users.length)
    const ranker = await loadRanker({ bundle })
    try {
      const wanted: Record<string, number> = {}
      for (const { id, history, target } of users) {
        const kept = history.slice(-8)
        const met = new Set(kept.map(({ item }) => item))
        const others = Array.from({ length: ITEMS }, (_, i) => ({ item: String(i + 1) }))
        const candidates = others.filter(({ item }) => !met.has(item))
        const input = { user: { id }, histories: [kept], series: {}, time: target.time }
        const { items } = await ranker.rank({ ...input, candidates }, {})
        wanted[id] = 1 + items.findIndex(({ item }) => item === target.item)
      }
      assert.deepEqual(JSON.parse(readFileSync(ranks, 'utf8')), wanted)
      const hits = Object.values(wanted).filter((rank) => rank <= 10).length
      assert.equal(printed['HR@10'], hits / users.length)
    } finally {
      await ranker.close()
    }
  })

  test('says of a server with API keys what it says of this process', async (t) => {
    const secret = 'of-a-retriever'
    const keys = `${folder}/keys.json`
    const keyFile = `${folder}/key`
    const asked = `${folder}/asked`
    const entry = { name: 'one', sha256: digestOf(secret).toString('hex'), scopes: ['rank'] }
    writeFileSync(keys, JSON.stringify({ keys: [entry] }))
    writeFileSync(keyFile, `${secret}\n`)
    const flags = ['--bundle', bundle, '--port', '0', '--host', '127.0.0.1', '--no-playground']
    const server = await serve({
      ...parseServerConfig([...flags, '--api-keys-file', keys], {}),
      loadRanker: (settings) => loadRanker({ ...settings, maxKvBytes: settings.kvBytes }),
      log: createLogger('silent'),
      signals: new EventEmitter(),
      setExitCode: () => {},
    })
    t.after(() => server.stop('the test is over'))
    await server.loaded
    // Not the synchronous one: the server answers on this thread.
    const ask = (...args: string[]) =>
      promisify(execFile)(process.execPath, [
        ...[CLI, 'eval-retrieval', '--data', data, '--bundle', bundle, '--url', server.url],
        ...args,
      ])
    await ask('--api-key-file', keyFile, '--ranks', asked)
    assert.deepEqual(
      JSON.parse(readFileSync(asked, 'utf8')),
      JSON.parse(readFileSync(ranks, 'utf8')),
    )
    await assert.rejects(ask(), /answered 401: .*needs an API key/)
    await assert.rejects(ask('--api-key-file', `${keyFile}.none`), /--api-key-file: ENOENT/)
  })

  const isThere = spawnSync(PYTHON, ['-c', 'import torch, safetensors']).status === 0
  const needsTorch =
    isThere || process.env.REQUIRE_TORCH === '1' ? false : `${PYTHON} has no PyTorch`

  test('says of a model of our recipe what its own evaluation says', { skip: needsTorch }, () => {
    const golden = ['one-head', 'two-heads'].map((name) => `test/golden/research/${name}`)
    run(PYTHON, `${RECIPE}/check.py`, '--golden', ...golden)
    writeLog(data, (item) => `movie-${item}`)
    const model = `${folder}/model`
    run(
      PYTHON,
      ...[`${RECIPE}/train.py`, '--data', data, '--out', model, '--max-steps', '5'],
      ...['--width', '16', '--heads', '2', '--max-length', '12', '--batch', '8', '--average', '0'],
      ...['--device', 'cpu'],
    )
    const theirs = `${folder}/theirs.json`
    run(PYTHON, `${RECIPE}/evaluate.py`, '--data', data, '--model', model, '--ranks', theirs)
    peregrine('export', '--from', model, '--out', `${folder}/trained`)
    peregrine('eval-retrieval', '--data', data, '--bundle', `${folder}/trained`, '--ranks', ranks)
    assert.deepEqual(
      JSON.parse(readFileSync(ranks, 'utf8')),
      JSON.parse(readFileSync(theirs, 'utf8')),
    )
  })

  test('refuses a bundle without a retrieval head and a file without the columns', () => {
    const refused = (message: RegExp, ...args: string[]) => {
      const { status, stderr } = spawnSync(process.execPath, [CLI, 'eval-retrieval', ...args], {
        encoding: 'utf8',
      })
      assert.notEqual(status, 0)
      assert.match(stderr, message)
      assert.doesNotMatch(stderr, /\n\s+at /)
    }
    const paper = `${folder}/paper`
    peregrine('export', '--from', 'test/golden/paper/plain', '--out', paper)
    refused(/has no retrieval head/, '--data', data, '--bundle', paper)
    writeFileSync(`${folder}/other.csv`, 'a,b\n1,2\n')
    refused(/columns user, item and ts/, '--data', `${folder}/other.csv`, '--bundle', bundle)
    refused(/needs --data/, '--bundle', bundle)
  })
})
