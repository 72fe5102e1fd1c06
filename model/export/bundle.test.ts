import assert from 'node:assert/strict'
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { after, describe, test } from 'node:test'
import {
  copyBundle,
  exportModel,
  type Json,
  reseal,
  smallConfig,
  tempFolder,
} from '../../test/fixtures.js'
import { RankError } from '../errors.js'
import { openBundle } from '../manifest.js'
import { readVectors } from '../vectors.js'
import { type ExportOptions, writeBundle } from './bundle.js'
import { randomWeights } from './random.js'

const encoded = smallConfig({
  context: [
    { name: 'country', rows: 3, encoding: { kind: 'vocabulary', file: 'maps/countries.json' } },
  ],
  catalogue: 'items.json',
})

/** A model folder with a vocabulary in a subfolder and a catalogue. */
function modelFolder(folder: string): string {
  mkdirSync(`${folder}/maps`)
  writeFileSync(`${folder}/maps/countries.json`, '["de", "fr"]')
  writeFileSync(`${folder}/items.json`, '{"features": ["tag"], "items": {"1": [2], "3": [5]}}')
  return folder
}

function options(folder: string, changes: Partial<ExportOptions> = {}): ExportOptions {
  const { config = encoded } = changes
  return {
    config,
    source: randomWeights(config, 3),
    folder,
    out: `${folder}/bundle`,
    precision: 'fp32',
    // Any oracle does: these tests are about files.
    createOracle: () => (_, candidates) => ({
      logits: new Float64Array((candidates.length / config.itemFeatures.length) * 3).fill(0.1),
    }),
    ...changes,
  }
}

/** Every file below a folder with its bytes. */
function filesIn(folder: string): Map<string, Buffer> {
  const names = readdirSync(folder, { recursive: true, encoding: 'utf8' }).sort()
  return new Map(
    names.flatMap((name) =>
      statSync(`${folder}/${name}`).isFile() ? [[name, readFileSync(`${folder}/${name}`)]] : [],
    ),
  )
}

describe('writeBundle', () => {
  for (const precision of ['fp32', 'fp16'] as const) {
    test(`gives the same bytes for the same input in ${precision}`, (t) => {
      const folder = modelFolder(tempFolder(t))
      const first = writeBundle(options(folder, { precision, out: `${folder}/one` }))
      const second = writeBundle(options(folder, { precision, out: `${folder}/sub/two` }))
      assert.equal(first.version, second.version)
      const files = filesIn(`${folder}/one`)
      assert.deepEqual(
        [...files.keys()],
        [
          'items.json',
          'manifest.json',
          'maps/countries.json',
          'prefill.onnx',
          'rank.onnx',
          'score.onnx',
          'vectors/vectors.json',
          'weights.bin',
        ],
      )
      assert.deepEqual(filesIn(`${folder}/sub/two`), files)
      assert.equal(openBundle(`${folder}/one`).manifest.precision, precision)
    })
  }

  test('leaves out the requests whose logits hang on the last bits of the weights', (t) => {
    const folder = modelFolder(tempFolder(t))
    const source = randomWeights(encoded, 3)
    const vectorsOf = (movedBy: (events: number) => number) => {
      const { version } = writeBundle(
        options(folder, {
          source,
          createOracle: (weights) => (history, candidates) => ({
            logits: new Float64Array((candidates.length / encoded.itemFeatures.length) * 3).fill(
              weights === source ? 0.1 : 0.1 + movedBy(history.length),
            ),
          }),
        }),
      )
      const bundle = openBundle(`${folder}/bundle`)
      assert.equal(bundle.manifest.version, version)
      return readVectors(bundle).map(({ request }) => request.histories[0]?.length)
    }
    const all = [0, 1, 2, 7, 20, 32]
    assert.deepEqual(
      vectorsOf(() => 0.019),
      all,
    )
    // Two context tokens, and two for each event.
    assert.deepEqual(
      vectorsOf((tokens) => (tokens <= 4 ? 0.021 : 0)),
      [2, 7, 20, 32],
    )
    // A task whose logits are large moves by more everywhere, and still has vectors.
    assert.deepEqual(
      vectorsOf(() => 1),
      all,
    )
  })

  test('has the index of a list of ids in its place, found by every id and refused when tampered with', (t) => {
    const folder = tempFolder(t)
    writeFileSync(`${folder}/items.ndjson`, '"x"\n7\n"z"\n')
    const encoding = { kind: 'vocabulary', file: 'items.ndjson', buckets: 2 }
    const config = smallConfig({
      itemFeatures: [
        { name: 'id', rows: 6, encoding },
        { name: 'author', rows: 9 },
        { name: 'tag', rows: 6 },
      ],
    })
    writeBundle(options(folder, { config }))
    const bundle = openBundle(`${folder}/bundle`)
    assert.deepEqual(Object.keys(bundle.manifest.files).sort(), [
      'items.ndjson.index',
      'prefill.onnx',
      'rank.onnx',
      'score.onnx',
      'vectors/vectors.json',
      'weights.bin',
    ])
    const { vocabulary } = bundle
    assert.deepEqual([1, 2, 3, 4].map(vocabulary.itemAt), ['x', '7', 'z', undefined])
    const asked = readVectors(bundle).flatMap(({ request }) => request.candidates)
    assert.ok(asked.every(({ item }) => ['x', '7', 'z'].includes(item)))
    const copy = copyBundle(t, bundle)
    truncateSync(`${copy}/items.ndjson.index`, 100)
    assert.throws(() => openBundle(copy), { message: /items\.ndjson\.index must have/ })
    reseal(copy)
    assert.throws(() => openBundle(copy), {
      code: 'CONFIG_INVALID',
      message: /must have \d+ bytes/,
    })
  })

  test('refuses a list of ids that does not fit its table, and leaves nothing', (t) => {
    const folder = tempFolder(t)
    writeFileSync(`${folder}/items.txt`, 'x\ny\nx\n')
    const itemFeatures = [
      { name: 'id', rows: 4, encoding: { kind: 'vocabulary', file: 'items.txt' } },
    ]
    const config = smallConfig({ itemFeatures, auxiliary: [] })
    assert.throws(() => writeBundle(options(folder, { config })), {
      code: 'CONFIG_INVALID',
      message: /items\.txt has the id "x" twice: on lines 1 and 3/,
    })
    assert.deepEqual(readdirSync(folder), ['items.txt'])
  })

  test('gives another version when any input differs', (t) => {
    const folder = modelFolder(tempFolder(t))
    const versionOf = (changes: Partial<ExportOptions>) =>
      writeBundle(options(folder, changes)).version
    const versions = [
      versionOf({}),
      versionOf({ precision: 'fp16' }),
      versionOf({ source: randomWeights(encoded, 4) }),
      versionOf({ config: { ...encoded, block: { alpha: 0.5 } } }),
      versionOf({ config: { ...encoded, weights: { like: 2 } } }),
    ]
    writeFileSync(`${folder}/items.json`, '{"features": ["tag"], "items": {"1": [2], "3": [4]}}')
    versions.push(versionOf({}))
    assert.equal(new Set(versions).size, versions.length, String(versions))
  })

  test('replaces a bundle, and overwrites nothing else', (t) => {
    const folder = modelFolder(tempFolder(t))
    writeBundle(options(folder))
    writeFileSync(`${folder}/bundle/old.txt`, 'x')
    const { version } = writeBundle(options(folder, { precision: 'fp16' }))
    assert.equal(openBundle(`${folder}/bundle`).manifest.version, version)
    assert.equal(existsSync(`${folder}/bundle/old.txt`), false)
    mkdirSync(`${folder}/precious`)
    writeFileSync(`${folder}/file`, 'x')
    for (const name of ['precious', 'file', 'maps']) {
      assert.throws(() => writeBundle(options(folder, { out: `${folder}/${name}` })), {
        code: 'BUNDLE_INVALID',
        message: /exists and is no bundle/,
      })
    }
    assert.deepEqual(readdirSync(folder).sort(), [
      'bundle',
      'file',
      'items.json',
      'maps',
      'precious',
    ])
    assert.equal(readFileSync(`${folder}/file`, 'utf8'), 'x')
  })

  test('can be read by other users, as the folders around it can', {
    skip: process.platform === 'win32' && 'no modes',
  }, (t) => {
    const folder = modelFolder(tempFolder(t))
    writeBundle(options(folder))
    assert.equal(statSync(`${folder}/bundle`).mode & 0o755, 0o755)
  })

  test('leaves nothing behind and the old bundle whole when it fails', (t) => {
    const folder = modelFolder(tempFolder(t))
    writeBundle(options(folder))
    const before = filesIn(folder)
    const source = randomWeights(encoded, 3)
    const withFile = (file: string) => options(folder, { config: { ...encoded, catalogue: file } })
    const failures: readonly (readonly [ExportOptions, string])[] = [
      [
        options(folder, { source: { ...source, read: (n) => source.read(n).fill(Number.NaN) } }),
        'WEIGHTS_INVALID',
      ],
      [
        options(folder, {
          precision: 'fp16',
          source: { ...source, read: (n) => source.read(n).fill(65_519) },
        }),
        'WEIGHTS_INVALID',
      ],
      [withFile('missing.json'), 'CONFIG_INVALID'],
      [withFile('maps'), 'CONFIG_INVALID'],
      [withFile('../outside.json'), 'CONFIG_INVALID'],
      [withFile('/etc/hostname'), 'CONFIG_INVALID'],
      [withFile('weights.bin'), 'CONFIG_INVALID'],
      [withFile('manifest.json'), 'CONFIG_INVALID'],
      [withFile('vectors/vectors.json'), 'CONFIG_INVALID'],
      [
        options(folder, {
          createOracle: () => () => {
            throw new RankError('INTERNAL', 'oracle')
          },
        }),
        'INTERNAL',
      ],
    ]
    for (const [failing, code] of failures) {
      assert.throws(() => writeBundle(failing), { code })
      assert.deepEqual(filesIn(folder), before, code)
    }
    openBundle(`${folder}/bundle`)
  })
})

describe('openBundle', () => {
  const good = tempFolder({ after })
  writeBundle(options(modelFolder(good)))
  const bundle = openBundle(`${good}/bundle`)
  const refused = (folder: string, message: RegExp, code = 'BUNDLE_INVALID') =>
    assert.throws(() => openBundle(folder), { name: 'RankError', code, message })

  test('refuses each listed file when missing, cut, longer, flipped, or a folder, naming it', (t) => {
    for (const file of Object.keys(bundle.manifest.files)) {
      const name = new RegExp(file.replaceAll('.', '\\.'))
      const damaged = (damage: (path: string) => void) => {
        const folder = copyBundle(t, bundle)
        damage(`${folder}/${file}`)
        refused(folder, name)
      }
      damaged((path) => rmSync(path))
      damaged((path) => truncateSync(path, statSync(path).size - 1))
      damaged((path) => truncateSync(path, 0))
      damaged((path) => writeFileSync(path, Buffer.concat([readFileSync(path), Buffer.alloc(1)])))
      damaged((path) => {
        const bytes = readFileSync(path)
        const middle = bytes.length >> 1
        bytes[middle] = (bytes[middle] ?? 0) ^ 1
        writeFileSync(path, bytes)
      })
      damaged((path) => {
        rmSync(path)
        mkdirSync(path)
      })
    }
  })

  test('refuses a manifest that is missing, cut anywhere, or no object', (t) => {
    const folder = copyBundle(t, bundle)
    const file = `${folder}/manifest.json`
    const text = readFileSync(file, 'utf8').trimEnd()
    for (let length = 0; length < text.length; length += 37) {
      writeFileSync(file, text.slice(0, length))
      refused(folder, /manifest\.json/)
    }
    for (const content of ['null', '[]', '1', '{}', '"x"', '[['.repeat(1000)]) {
      writeFileSync(file, content)
      refused(folder, /manifest\.json/)
    }
    rmSync(file)
    refused(folder, /cannot read .+manifest\.json/)
    refused(`${folder}/none`, /cannot read/)
  })

  test('refuses every field that was changed without the version', (t) => {
    const changes: readonly ((m: Json) => void)[] = [
      (m) => Object.assign(m, { name: 'other' }),
      (m) => Object.assign(m, { producer: 'other' }),
      (m) => Object.assign(m, { precision: 'fp16' }),
      (m) => Object.assign(m, { appendIsExact: false }),
      (m) => Object.assign(m.config, { layers: 3 }),
      (m) => Object.assign(m.vectors, { tolerance: 1 }),
      (m) => Object.assign(m.graphs.score.inputs[0], { type: 'int64' }),
      (m) => Object.assign(m.files['weights.bin'], { sha256: '0'.repeat(64) }),
      (m) => delete m.files['weights.bin'],
      (m) => Object.assign(m, { version: '0123456789abcdef' }),
    ]
    for (const change of changes) {
      const folder = copyBundle(t, bundle)
      const manifest: Json = JSON.parse(readFileSync(`${folder}/manifest.json`, 'utf8'))
      change(manifest)
      writeFileSync(`${folder}/manifest.json`, JSON.stringify(manifest))
      refused(folder, /version must be the hash of the manifest's content/)
    }
  })

  test('refuses a resealed manifest that is wrong, saying where', (t) => {
    const file = (name: string) => (m: Json) =>
      Object.assign(m.files, { [name]: { sha256: '0'.repeat(64), bytes: 0 } })
    const cases: readonly (readonly [(m: Json) => void, RegExp, string?])[] = [
      [(m) => Object.assign(m, { schemaVersion: 2 }), /\/schemaVersion .+got 2/],
      [(m) => Object.assign(m, { precision: 'int8' }), /\/precision .+got "int8"/],
      [(m) => Object.assign(m, { extra: 1 }), /has unknown fields: extra/],
      [(m) => delete m.vectors, /lacks the fields: vectors/],
      [(m) => Object.assign(m.config, { heads: 0 }), /config \/heads/, 'CONFIG_INVALID'],
      [(m) => Object.assign(m, { config: null }), /config \//, 'CONFIG_INVALID'],
      [(m) => Object.assign(m.embedding, { rows: 99 }), /embedding does not follow from config/],
      [(m) => Object.assign(m.embedding.tables[0], { offset: 0 }), /embedding does not follow/],
      [(m) => Object.assign(m.config.context[0], { rows: 4 }), /embedding does not follow/],
      [file('../weights.bin'), /"\.\.\/weights\.bin" leaves the bundle/],
      [file('a/../../x'), /leaves the bundle/],
      [file('/etc/passwd'), /leaves the bundle/],
      [file('a\\..\\x'), /leaves the bundle/],
      [file('a\u0000'), /leaves the bundle/],
      [file('.'), /\. is missing/],
      [file('weights.bin/x'), /weights\.bin\/x/],
      [file('n'.repeat(300)), /n{20}/],
      [file('constructor'), /constructor is missing/],
      [
        (m) => Object.assign(m.graphs.rank, { file: '../rank.onnx' }),
        /"\.\.\/rank\.onnx" is used but not listed/,
      ],
      [
        (m) => Object.assign(m.vectors, { file: 'constructor' }),
        /"constructor" is used but not listed/,
      ],
      [
        (m) => delete m.files['maps/countries.json'],
        /"maps\/countries\.json" is used but not listed/,
      ],
      [
        (m) => Object.assign(m.config, { catalogue: 'rank.onnx' }),
        /rank\.onnx as JSON/,
        'CONFIG_INVALID',
      ],
    ]
    for (const [change, message, code] of cases) {
      const folder = copyBundle(t, bundle)
      reseal(folder, change)
      refused(folder, message, code)
    }
  })

  test('refuses a vocabulary that no longer fits its table, even resealed', (t) => {
    const folder = copyBundle(t, bundle)
    writeFileSync(`${folder}/maps/countries.json`, '["de", "fr", "it"]')
    reseal(folder)
    refused(folder, /maps\/countries\.json must list 2 values, got 3/, 'CONFIG_INVALID')
  })

  test('opens a copy that was resealed without change: only the version counts', (t) => {
    const folder = copyBundle(t, bundle)
    reseal(folder)
    assert.equal(openBundle(folder).manifest.version, bundle.manifest.version)
  })
})

describe('readVectors', () => {
  const model = exportModel({ after })

  test('gives requests with finite logits of every length that they promise', () => {
    const vectors = readVectors(model.bundle)
    assert.deepEqual(
      vectors.map(({ request }) => request.histories[0]?.length),
      [0, 1, 2, 7, 20, 32],
    )
    for (const { request, logits } of vectors) {
      assert.equal(logits.length, request.candidates.length)
      assert.ok(logits.flat().every(Number.isFinite))
    }
  })

  test('refuses vectors that are no vectors with BUNDLE_INVALID', (t) => {
    for (const content of [
      '',
      '{}',
      '[1]',
      '[{"request": {}, "logits": []}]',
      '[{"logits":[["x"]]}]',
    ]) {
      const folder = copyBundle(t, model.bundle)
      writeFileSync(`${folder}/vectors/vectors.json`, content)
      reseal(folder)
      assert.throws(() => readVectors(openBundle(folder)), {
        code: 'BUNDLE_INVALID',
        message: /vectors\.json/,
      })
    }
  })
})
