// What several tests need: temporary folders, a small model with random weights, requests for it.
import { cpSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { createReference } from '../falcon/reference.js'
import { type HstuConfig, parseConfig } from '../model/config.js'
import type { Block } from '../model/config-schema.js'
import { type Oracle, writeBundle } from '../model/export/bundle.js'
import type { WeightSource } from '../model/export/checkpoint.js'
import { asStored, STORED_AS, type TableType } from '../model/export/table.js'
import { exportVariant } from '../model/export/variants.js'
import { hashFile } from '../model/file-hash.js'
import { type Bundle, contentVersion, openBundle, type Precision } from '../model/manifest.js'
import type { HistoryEvent, RankInput } from '../model/request.js'
import { buildCandidates, buildHistory } from '../model/sequence.js'
import type { HistoryTokens } from '../model/tokens.js'
import type { Vocabulary } from '../model/vocabulary.js'

/** What cleans up at its end: a test, `{ after }` of node:test for a whole file, a bench's scope. */
export type Scope = { after(clean: () => void | Promise<void>): void }

/** An empty folder that goes when the scope ends. */
export function tempFolder(scope: Scope): string {
  const folder = mkdtempSync(`${tmpdir()}/peregrine-test-`)
  scope.after(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** Both values of every flag of a block: the public variants' own first. */
export const BLOCK_FLAGS: { readonly [F in keyof Block]: readonly [Block[F], Block[F]] } = {
  silu: ['uvqk', 'u'],
  alpha: [1, 0.25],
  rab: [true, false],
  normInAffine: [true, false],
  normAttnAffine: [true, false],
  combine: ['gate', 'concat'],
  uvqkBias: [false, true],
  outBias: [true, false],
}

/**
 * Two layers, dqk != dv, three item features, an auxiliary series, positions fewer than tokens (so
 * that the distance clamp is reached), binary and regression tasks.
 */
export const SMALL = {
  variant: 'paper',
  name: 'small',
  dModel: 16,
  heads: 2,
  dqk: 6,
  dv: 4,
  layers: 2,
  maxTokens: 66,
  positions: 20,
  timeBuckets: 128,
  headHidden: 12,
  layerNormEps: 1e-6,
  context: [
    { name: 'country', rows: 5 },
    { name: 'device', rows: 3 },
  ],
  itemFeatures: [
    { name: 'id', rows: 31 },
    { name: 'author', rows: 9 },
    { name: 'tag', rows: 6 },
  ],
  actions: ['click', 'like', 'share', 'unobserved', 'moved'],
  unobservedAction: 'unobserved',
  auxiliary: [{ name: 'city', table: 'aux.city', rows: 6, action: 'moved' }],
  tasks: [
    { name: 'click', type: 'binary' },
    { name: 'like', type: 'binary' },
    { name: 'seconds', type: 'regression' },
  ],
} as const

export function smallConfig(changes: object = {}): HstuConfig {
  return parseConfig({ ...SMALL, ...changes })
}

export type ModelFixture = {
  readonly config: HstuConfig
  readonly source: WeightSource
  readonly bundle: Bundle
  readonly vocabulary: Vocabulary
  readonly reference: ReturnType<typeof createReference>
}

export type ModelOptions = {
  readonly config?: HstuConfig
  readonly seed?: number
  readonly precision?: Precision
  /** What the table is stored as, which `reference` then reads; as the precision says where absent. */
  readonly table?: TableType
  readonly source?: WeightSource
  /** Who answers the bundle's test vectors: the float64 reference, which takes seconds for wide models. */
  readonly oracle?: Oracle
  /** JSON files that the config names. */
  readonly files?: { readonly [name: string]: unknown }
  /** Lists of ids that the config names. */
  readonly texts?: { readonly [name: string]: string }
}

/** Exports a model with random weights into a temporary folder and opens the bundle. */
export function exportModel(scope: Scope, options: ModelOptions = {}): ModelFixture {
  const { config = smallConfig(), seed = 7, precision = 'fp32' } = options
  const source = options.source ?? exportVariant(config).random(seed)
  const { table = precision } = options
  const { table: tensors } = exportVariant(config)
  const isRounded = table !== precision
  const stored = isRounded ? asStored(source, tensors, STORED_AS[table]) : source
  const reference = createReference(stored, config)
  const { oracle = reference } = options
  const folder = tempFolder(scope)
  for (const [name, content] of Object.entries(options.files ?? {})) {
    writeFileSync(`${folder}/${name}`, JSON.stringify(content))
  }
  for (const [name, text] of Object.entries(options.texts ?? {})) {
    writeFileSync(`${folder}/${name}`, text)
  }
  // Not of rounded weights too: that takes as long again, and these models' requests are steady.
  const createOracle = () => oracle
  writeBundle({ config, source, folder, out: `${folder}/bundle`, precision, table, createOracle })
  const bundle = openBundle(`${folder}/bundle`)
  return { config, source, bundle, vocabulary: bundle.vocabulary, reference }
}

/** A copy of a bundle's folder, to be tampered with. */
export function copyBundle(scope: Scope, bundle: Bundle): string {
  const copy = `${tempFolder(scope)}/bundle`
  cpSync(bundle.folder, copy, { recursive: true })
  return copy
}

/** Rewrites a bundle's manifest; sizes, hashes and version are made to fit what is there. */
export function reseal(folder: string, change: (manifest: Json) => void = () => {}): void {
  const manifest: Json = JSON.parse(readFileSync(`${folder}/manifest.json`, 'utf8'))
  for (const [file, entry] of Object.entries<Json>(manifest.files)) {
    entry.sha256 = hashFile(`${folder}/${file}`)
    entry.bytes = statSync(`${folder}/${file}`).size
  }
  change(manifest)
  manifest.version = contentVersion(manifest)
  writeFileSync(`${folder}/manifest.json`, JSON.stringify(manifest))
}

// biome-ignore lint/suspicious/noExplicitAny: tests break JSON in ways that no type allows
export type Json = any

const START_SECONDS = 1_700_000_000

export type RequestShape = {
  readonly user?: string
  readonly events: number
  readonly candidates: number
  readonly series?: number
}

/** A request for `SMALL`-like configs; unknown ids, unobserved actions and equal times are in it. */
export function randomRequest(
  config: HstuConfig,
  random: () => number,
  { user = 'u1', events, candidates, series = 0 }: RequestShape,
): RankInput {
  const below = (limit: number) => Math.floor(random() * limit)
  const features = () =>
    Object.fromEntries(config.itemFeatures.slice(1).map(({ name, rows }) => [name, below(rows)]))
  const items = config.itemFeatures[0]?.rows ?? 1
  let time = START_SECONDS
  const step = () => {
    time += random() < 0.2 ? 0 : Math.floor(10 ** (random() * 7))
    return time
  }
  const history = Array.from({ length: events }, (): HistoryEvent => {
    const event = { item: String(below(items + 1)), time: step(), features: features() }
    if (random() < 0.1) return event
    return { ...event, actions: config.actions.filter(() => random() < 0.3) }
  })
  return {
    user: {
      id: user,
      features: Object.fromEntries(config.context.map(({ name, rows }) => [name, below(rows)])),
    },
    histories: [history],
    series: Object.fromEntries(
      config.auxiliary.map(({ name }) => [
        name,
        Array.from({ length: series }, () => ({
          value: below(6),
          time: START_SECONDS + below(1e6),
        })),
      ]),
    ),
    candidates: Array.from({ length: candidates }, () => ({
      item: String(below(items + 1)),
      features: features(),
    })),
    time: time + below(1000),
  }
}

export type Tokens = {
  readonly history: HistoryTokens
  /** (m, slots) */
  readonly candidates: Int32Array
  readonly queryTime: number
}

export function tokensOf(request: RankInput, vocabulary: Vocabulary, slackEvents = 0): Tokens {
  const history = buildHistory(request, vocabulary, slackEvents)
  return {
    history: history.tokens,
    candidates: buildCandidates(request, vocabulary, history).rows,
    queryTime: request.time,
  }
}

export function randomTokens(
  { config, vocabulary }: ModelFixture,
  random: () => number,
  shape: RequestShape,
): Tokens {
  return tokensOf(randomRequest(config, random, shape), vocabulary)
}

/** Rows `indices` of a row-major matrix of `width` columns. */
export function pickRows(rows: Int32Array, width: number, indices: readonly number[]): Int32Array {
  return Int32Array.from(
    indices.flatMap((i) => Array.from(rows.subarray(i * width, (i + 1) * width))),
  )
}

export type RawTensor = {
  readonly dtype: string
  readonly shape: readonly number[]
  readonly data: Uint8Array
}

/** A safetensors file of the given tensors, in their order. */
export function safetensorsBytes(tensors: { readonly [name: string]: RawTensor }): Buffer {
  let position = 0
  const entries = Object.entries(tensors).map(([name, { dtype, shape, data }]) => {
    const start = position
    position += data.length
    return [name, { dtype, shape, data_offsets: [start, position] }]
  })
  return safetensorsFile(
    JSON.stringify(Object.fromEntries(entries)),
    Buffer.concat(Object.values(tensors).map(({ data }) => data)),
  )
}

/** u64 header length, header, data; `claimed` lies about the header's length. */
export function safetensorsFile(
  header: string,
  data: Uint8Array = new Uint8Array(0),
  claimed = BigInt(Buffer.byteLength(header)),
): Buffer {
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(claimed)
  return Buffer.concat([length, Buffer.from(header), data])
}

export function float32Bytes(values: ArrayLike<number>): Uint8Array {
  return new Uint8Array(Float32Array.from(values).buffer)
}
