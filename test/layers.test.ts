import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { posix } from 'node:path'
import { describe, test } from 'node:test'

/** Imports go one way: a folder may import itself and those behind it. */
const LAYERS = ['bench', 'server', 'falcon', 'cache', 'model']

/** Packages that live in one place only. */
const HOMES: readonly (readonly [RegExp, readonly string[]])[] = [
  [/^onnxruntime-(node|common|web)(\/|$)/, ['model/engine/']],
  [/^koffi(\/|$)/, ['model/engine/']],
  [/^(fastify|fastify-.+|@fastify\/.+)$/, ['server/']],
  [/^(node:)?https?2?$/, ['server/', 'bench/']],
  [/^(ioredis|redis)(\/|$)/, ['cache/']],
  [/^@opentelemetry\//, ['server/otel.ts']],
]

/** Every way to name another file: import and export, types included, import(), require, URLs of workers. */
const REFERENCES = [
  /\bfrom\s*(['"])(.+?)\1/g,
  /\bimport\s*(['"])(.+?)\1/g,
  /\bimport\s*\(\s*(['"`])(.+?)\1/g,
  /\brequire(?:\.resolve)?\s*\(\s*(['"`])(.+?)\1/g,
  /\bnew\s+URL\s*\(\s*(['"`])(.+?)\1\s*,\s*import\.meta\.url/g,
]

/** What breaks the rules in the source of `file` (a path from the root), one line per import. */
function faultsOf(file: string, source: string): string[] {
  const isTest = file.endsWith('.test.ts')
  const layer = LAYERS.indexOf(file.split('/')[0] ?? '')
  const specifiers = REFERENCES.flatMap((pattern) =>
    [...source.matchAll(pattern)].map(([, , specifier = '']) => specifier),
  )
  return specifiers.flatMap((specifier) => {
    const fault = (why: string) => [`${file} imports ${specifier}: ${why}`]
    if (!specifier.startsWith('.')) {
      const home = HOMES.find(([name]) => name.test(specifier))?.[1]
      const isAtHome = home?.some((folder) => file.startsWith(folder)) ?? true
      return isAtHome ? [] : fault(`it belongs to ${home?.join(' and ')}`)
    }
    const target = posix.join(posix.dirname(file), specifier)
    // Benches start the same servers and break them in the same ways.
    const mayUseTests = isTest || file.startsWith('bench/')
    if (target.endsWith('.test.js') || (target.startsWith('test/') && !mayUseTests)) {
      return fault('only tests and benches import from test/, and nobody a test')
    }
    const targetLayer = LAYERS.indexOf(target.split('/')[0] ?? '')
    if (targetLayer === -1 || targetLayer >= layer) return []
    return fault(`${LAYERS[targetLayer]}/ lies above ${LAYERS[layer]}/`)
  })
}

function sourcesOf(layer: string): string[] {
  try {
    return readdirSync(layer, { recursive: true, encoding: 'utf8' })
      .map((name) => posix.join(layer, name.replaceAll('\\', '/')))
      .filter((name) => name.endsWith('.ts'))
  } catch {
    return []
  }
}

describe('layers', () => {
  test('imports go one way, bench → server → falcon → cache → model, and packages stay at home', () => {
    const files = LAYERS.flatMap(sourcesOf)
    const seen = new Set(files.map((file) => file.split('/')[0]))
    for (const layer of ['server', 'falcon', 'cache', 'model']) {
      assert.ok(seen.has(layer), `no sources of ${layer}/: run from the repository's root`)
    }
    assert.ok(files.includes('model/engine/node/worker.ts'), 'subfolders are read')
    assert.deepEqual(
      files.flatMap((file) => faultsOf(file, readFileSync(file, 'utf8'))),
      [],
    )
  })

  test('the check sees every form of import, at any depth', () => {
    const bad: readonly (readonly [string, string])[] = [
      ['model/a.ts', `import { x } from '../cache/kv.js'`],
      ['model/engine/node/a.ts', `import { x } from '../../../falcon/rank.js'`],
      ['model/a.ts', `import type { X } from "../falcon/types.js"`],
      ['cache/a.ts', `import '../falcon/rank.js'`],
      ['cache/a.ts', `export { x } from '../server/app.js'`],
      ['cache/a.ts', `export * from '../bench/x.js'`],
      ['falcon/a.ts', `const x = await import('../server/app.js')`],
      ['falcon/a.ts', `type X = import('../server/app.js').X`],
      ['falcon/a.ts', `new Worker(new URL('../server/worker.js', import.meta.url))`],
      ['falcon/a.ts', `const x = require('../server/app.js')`],
      ['falcon/a.ts', `import {\n  a,\n  b,\n} from '../server/app.js'`],
      ['server/a.ts', `import { x } from '../bench/sweep.js'`],
      ['server/commands/a.ts', `import { x } from '../../bench/sweep.js'`],
      ['model/a.ts', `import { x } from './../model/../cache/kv.js'`],
      ['falcon/a.ts', `import { Tensor } from 'onnxruntime-node'`],
      ['model/a.ts', `import type { Tensor } from 'onnxruntime-common'`],
      ['falcon/a.ts', `import fastify from 'fastify'`],
      ['model/a.ts', `import swagger from '@fastify/swagger'`],
      ['server/a.ts', `import { Redis } from 'ioredis'`],
      ['cache/a.ts', `import { request } from 'node:http'`],
      ['falcon/a.ts', `import { x } from '../test/fixtures.js'`],
      ['server/a.ts', `import { x } from '../test/redis.js'`],
      ['falcon/a.ts', `import { x } from './plan.test.js'`],
      ['bench/a.ts', `import { x } from './plan.test.js'`],
      ['falcon/a.test.ts', `import { x } from '../server/app.js'`],
    ]
    for (const [file, source] of bad) {
      assert.equal(faultsOf(file, source).length, 1, `${file}: ${source}`)
    }
  })

  test('the check lets the allowed direction pass', () => {
    const good: readonly (readonly [string, string])[] = [
      ['bench/a.ts', `import { x } from '../server/app.js'`],
      ['server/commands/a.ts', `import { x } from '../../falcon/rank.js'`],
      ['falcon/a.ts', `import type { X } from '../cache/kv.js'`],
      ['cache/a.ts', `import { x } from '../model/tokens.js'`],
      ['model/engine/node/a.ts', `import { x } from '../../errors.js'`],
      ['model/engine/node/a.ts', `import { Tensor } from 'onnxruntime-node'`],
      ['server/a.ts', `import fastify from 'fastify'`],
      ['falcon/a.test.ts', `import { x } from '../test/fixtures.js'`],
      ['bench/a.ts', `import { x } from '../test/redis.js'`],
      ['model/a.ts', `import { readFileSync } from 'node:fs'`],
    ]
    for (const [file, source] of good) assert.deepEqual(faultsOf(file, source), [], source)
  })
})
