// The search of a candidate list against one product over all of it, and against JavaScript. Called by
// run-retrieve.ts.
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { createRanker } from '../falcon/rank.js'
import { createReference } from '../falcon/reference.js'
import { createEngine } from '../model/engine/create.js'
import type { Engine } from '../model/engine/engine.js'
import { writeBundle } from '../model/export/bundle.js'
import { onnxGraph } from '../model/export/onnx.js'
import { RANDOM_MODELS } from '../model/export/random-models.js'
import { exportVariant } from '../model/export/variants.js'
import { dense, writeWeightFile } from '../model/export/weight-file.js'
import { type Bundle, openBundle } from '../model/manifest.js'
import { createRandom } from '../model/random.js'
import type { RetrieveInput } from '../model/request.js'
import { copyBundle, reseal, type Scope, tempFolder } from '../test/fixtures.js'
import { bestOf } from './heap.js'
import { quantile } from './stats.js'
import { SEED } from './workload.js'

export const K = 100
/** Of the list; the whole of it is one more. */
export const CHUNKS = [1024, 4096, 16_384, 65_536, 262_144]
const EVENTS = 200
const START_SECONDS = 1_700_000_000

export type Latency = { readonly p50: number; readonly p99: number }

export type RetrievePoint = {
  readonly items: number
  readonly width: number
  readonly repeats: number
  /** Milliseconds of a request whose K/V is there, and its search alone. */
  readonly request: Latency
  readonly search: Latency
  readonly chunkItems: number
  /** One product of all items' normed rows with the user, and TopK. */
  readonly product: Latency
  /** Products and a heap in JavaScript, over the same rows. */
  readonly javascript: Latency
  readonly byChunk: readonly { readonly chunkItems: number; readonly search: Latency }[]
  /** Peak of the process without the mapped weight file, in MiB. */
  readonly memory: readonly { readonly chunkItems: number; readonly peakMiB: number }[]
}

/** A list of `items` items in a model of two layers, width 50; `repeats` runs of everything in turn. */
export async function benchRetrieve(
  scope: Scope,
  items: number,
  repeats: number,
  log: (line: string) => void,
): Promise<RetrievePoint> {
  const bundle = exportItems(scope, items)
  const rows = normedRows(bundle)
  const width = bundle.manifest.config.dModel
  const engine = await open(scope, bundle)
  const whole = await open(scope, productBundle(scope, bundle, rows))
  const input = requestOf(items)
  const request: number[] = []
  const search: number[] = []
  const product: number[] = []
  const javascript: number[] = []
  const sizes = [...CHUNKS.filter((size) => size < items), items]
  const byChunk = sizes.map((chunkItems) => ({ chunkItems, times: [] as number[] }))
  const options = { engine, bundle, microBatchSize: 256, maxKvBytes: 2 ** 28 }
  const ranker = createRanker(options)
  const sized = sizes.map((chunkItems) => createRanker({ ...options, chunkItems }))
  const user = await userOf(engine, width)
  const all = { from: 0, count: items, k: K, excluded: new BigInt64Array(0) }
  for (let i = -1; i < repeats; i++) {
    const note = (times: number[], ms: number) => {
      if (i >= 0) times.push(ms)
    }
    const took = async (times: number[], work: () => unknown) => {
      const start = performance.now()
      await work()
      note(times, performance.now() - start)
    }
    const { timings, kv } = await ranker.retrieve(input, { topK: K })
    if (i >= 0 && kv.state !== 'hit') throw new Error(`expected a hit, got ${kv.state}`)
    note(request, timings.totalMs)
    note(search, timings.searchMs)
    await took(product, () => whole.retrieve(user, all))
    await took(javascript, () => bestOf(rows, user, K))
    for (const [s, { times }] of byChunk.entries()) {
      const found = await sized[s]?.retrieve(input, { topK: K })
      note(times, found?.timings.searchMs ?? Number.NaN)
    }
  }
  const { chunkItems = items } = ranker.model.retrieval ?? {}
  const probed = [...new Set([chunkItems, items])].map((size) => ({
    chunkItems: size,
    peakMiB: peakMiB(bundle.folder, size),
  }))
  const point = {
    ...{ items, width, repeats, chunkItems, memory: probed },
    request: latencyOf(request),
    search: latencyOf(search),
    product: latencyOf(product),
    javascript: latencyOf(javascript),
    byChunk: byChunk.map((each) => ({
      chunkItems: each.chunkItems,
      search: latencyOf(each.times),
    })),
  }
  log(
    `${items} items: p50 ${point.request.p50.toFixed(2)} ms, product ${point.product.p50.toFixed(2)} ms`,
  )
  return point
}

export function requestOf(items: number): RetrieveInput {
  const random = createRandom(SEED)
  const history = Array.from({ length: EVENTS }, (_, i) => ({
    item: String(1 + Math.floor(random() * items)),
    time: START_SECONDS + 3600 * i,
  }))
  return {
    ...{ user: { id: 'u' }, histories: [history], series: {}, exclude: [], excludeHistory: true },
    time: START_SECONDS + 3600 * EVENTS,
  }
}

function exportItems(scope: Scope, items: number): Bundle {
  const shape = { layers: 2, dModel: 50, heads: 1, maxTokens: EVENTS, items: items + 1 }
  const config = RANDOM_MODELS.research.config(shape)
  const source = exportVariant(config).random(SEED)
  const out = `${tempFolder(scope)}/bundle`
  const createOracle = (weights: typeof source) => createReference(weights, config)
  writeBundle({ config, source, folder: '.', out, precision: 'fp32', createOracle })
  return openBundle(out)
}

async function open(scope: Scope, bundle: Bundle): Promise<Engine> {
  const engine = await createEngine({ bundle, workers: 1, threadsPerWorker: 1 })
  scope.after(() => engine.close())
  return engine
}

/** (items, D) rows of length 1. */
function normedRows({ manifest, vocabulary }: Bundle): Float32Array {
  const { config } = manifest
  const table = exportVariant(config).random(SEED).read('embedding')
  const width = config.dModel
  const first = vocabulary.candidates?.rows(0, 1)[0] ?? 0
  const count = vocabulary.candidates?.length ?? 0
  const rows = table.slice(first * width, (first + count) * width)
  for (let at = 0; at < rows.length; at += width) {
    const row = rows.subarray(at, at + width)
    const norm = Math.sqrt(row.reduce((sum, value) => sum + value * value, 0))
    row.forEach((value, i) => {
      row[i] = value / norm
    })
  }
  return rows
}

/** The bundle with another graph `retrieve`: one product with a matrix of its own, and TopK. */
function productBundle(scope: Scope, bundle: Bundle, rows: Float32Array): Bundle {
  const { config, graphs } = bundle.manifest
  const width = config.dModel
  const folder = copyBundle(scope, bundle)
  const matrix = dense([rows.length / width, width], rows)
  const weights = writeWeightFile(folder, 'items.bin', new Map([['items', matrix]]), 'float32')
  const { bytes } = onnxGraph('retrieve', weights, [], (g) => {
    const user = g.input('user', 'float32', [1, width])
    for (const name of ['from', 'count']) g.input(name, 'int64', [1])
    g.input('excluded', 'int64', ['x'])
    const k = g.input('k', 'int64', [1])
    const column = g.op('Reshape', [user, g.ints([-1, 1])])
    const scores = g.op('Reshape', [g.op('MatMul', [g.weight('items'), column]), g.ints([-1])])
    const [best = '', places = ''] = g.opN('TopK', [scores, k], 2)
    g.output('scores', best, 'float32', ['k'])
    g.output('places', places, 'int64', ['k'])
  })
  writeFileSync(`${folder}/${graphs.retrieve?.file}`, bytes)
  const { sha256, bytes: size } = weights
  reseal(folder, (manifest) => {
    manifest.files['items.bin'] = { sha256, bytes: size }
  })
  return openBundle(folder)
}

/** A user of length 1; which does not matter to the time. */
async function userOf(engine: Engine, width: number): Promise<Float32Array> {
  const random = createRandom(SEED)
  const user = Float32Array.from({ length: width }, () => random() - 0.5)
  const norm = Math.sqrt(user.reduce((sum, value) => sum + value * value, 0))
  await engine.trim?.()
  return user.map((value) => value / norm)
}

function latencyOf(times: readonly number[]): Latency {
  return { p50: quantile(times, 0.5), p99: quantile(times, 0.99) }
}

/** In a process of its own, because a peak never falls. */
function peakMiB(folder: string, chunkItems: number): number {
  const probe = fileURLToPath(new URL('./retrieve-probe.js', import.meta.url))
  const args = [probe, folder, String(chunkItems)]
  return Number(execFileSync(process.execPath, args, { encoding: 'utf8' }))
}
