import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { dirname, resolve } from 'node:path'
import { type HstuConfig, readJson, statedOf } from '../config.js'
import { RankError } from '../errors.js'
import { hashFile } from '../file-hash.js'
import { indexFileOf, isIdList } from '../id-index.js'
import {
  configFiles,
  contentVersion,
  type GraphName,
  isSafe,
  MANIFEST_FILE,
  type Manifest,
  type Precision,
  type RetrievalGraphName,
  SCHEMA_VERSION,
} from '../manifest.js'
import type { RankInput } from '../request.js'
import { tokenScheme } from '../schemes.js'
import { buildCandidates, buildHistory } from '../sequence.js'
import type { HistoryTokens } from '../tokens.js'
import { sampleRequests, TOLERANCE } from '../vectors.js'
import { readVocabulary } from '../vocabulary.js'
import { roundedToBf16, type WeightSource } from './checkpoint.js'
import { buildGraphs } from './graphs.js'
import { writeIdIndex } from './id-list.js'
import type { OnnxGraph } from './onnx.js'
import { buildRetrieval, retrievalTensors } from './retrieval.js'
import { asStored, STORED_AS, type TableType, withStoredTable } from './table.js'
import { exportVariant } from './variants.js'
import { type OnWritten, type Tensor, writeWeightFile } from './weight-file.js'

const PRODUCER = 'peregrine 0.1.0'
const WEIGHT_FILE = 'weights.bin'
/** A quarter of what bf16 may differ by; well-behaved models move by a tenth of it. */
const MOST_MOVED = TOLERANCE.bf16 / 4
const VECTOR_FILE = 'vectors/vectors.json'
const VECTOR_SEED = 20_240_227

/** Logits (m, tasks) of the slow oracle for tokens and candidate rows (m, slots). */
export type Oracle = (
  history: HistoryTokens,
  candidates: Int32Array,
  queryTime: number,
) => { readonly logits: Float64Array }

export type ExportOptions = {
  readonly config: HstuConfig
  readonly source: WeightSource
  /** Folder that holds the vocabulary files and the catalogue that the config names. */
  readonly folder: string
  readonly out: string
  readonly precision: Precision
  /** What the embedding table is stored as; as the precision says where absent. */
  readonly table?: TableType
  readonly createOracle: (source: WeightSource) => Oracle
  readonly onWritten?: OnWritten
  /** Told the largest difference that `table` makes to a logit of the sample requests. */
  readonly onTableError?: (most: number) => void
}

/**
 * Writes a bundle, whole or not at all: it is built beside `out` and renamed. The same input gives
 * the same bytes. An `out` that holds a bundle is replaced.
 * @throws {RankError} WEIGHTS_INVALID, CONFIG_INVALID; BUNDLE_INVALID when `out` is something else
 */
export function writeBundle(options: ExportOptions): Manifest {
  const out = resolve(options.out)
  if (existsSync(out) && !existsSync(`${out}/${MANIFEST_FILE}`)) {
    throw new RankError('BUNDLE_INVALID', `${out} exists and is no bundle: not overwriting it`)
  }
  const work = makeWorkFolder(out)
  try {
    const manifest = writeInto(work, options)
    // Two renames: at no moment is a half-removed bundle where a server would look.
    const former = `${work}-former`
    if (existsSync(out)) renameSync(out, former)
    renameSync(work, out)
    rmSync(former, { recursive: true, force: true })
    return manifest
  } catch (error) {
    rmSync(work, { recursive: true, force: true })
    throw error
  }
}

function makeWorkFolder(out: string): string {
  try {
    mkdirSync(dirname(out), { recursive: true })
    const work = mkdtempSync(`${out}.tmp-`)
    // mkdtemp makes folders for the owner alone; a bundle is often served by another user.
    chmodSync(work, 0o755)
    return work
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RankError('BUNDLE_INVALID', `cannot write ${out}: ${why}`, { cause })
  }
}

function writeInto(folder: string, options: ExportOptions): Manifest {
  const { config, precision, table = precision, onWritten } = options
  const type = STORED_AS[precision]
  const files = new Map<string, { sha256: string; bytes: number }>()
  const add = (file: string) => {
    const path = `${folder}/${file}`
    files.set(file, { sha256: hashFile(path), bytes: statSync(path).size })
  }
  // First: a candidate list is read by them.
  writeConfigFiles(folder, options, add)
  const stored = weightTensors(options, folder)
  const weights = writeWeightFile(folder, WEIGHT_FILE, stored, type, onWritten)
  files.set(WEIGHT_FILE, { sha256: weights.sha256, bytes: weights.bytes })
  const parts = { config, parts: exportVariant(config).graphs, weights, type }
  const write = (name: AnyGraph, { bytes, inputs, outputs }: OnnxGraph) => {
    const file = graphFile(name)
    writeFileSync(`${folder}/${file}`, bytes)
    add(file)
    return { file, inputs, outputs }
  }
  const graphs = buildGraphs(parts)
  const retrieval = config.retrieval === undefined ? undefined : buildRetrieval(parts)
  const graphEntries = {
    prefill: write('prefill', graphs.prefill),
    score: write('score', graphs.score),
    rank: write('rank', graphs.rank),
    ...(retrieval !== undefined && {
      encode: write('encode', retrieval.encode),
      retrieve: write('retrieve', retrieval.retrieve),
    }),
  }
  mkdirSync(dirname(`${folder}/${VECTOR_FILE}`), { recursive: true })
  writeFileSync(`${folder}/${VECTOR_FILE}`, vectorsJson(options, folder))
  add(VECTOR_FILE)
  const scheme = tokenScheme(config)
  const content: Omit<Manifest, 'version'> = {
    schemaVersion: SCHEMA_VERSION,
    name: config.name ?? 'model',
    producer: PRODUCER,
    precision,
    appendIsExact: scheme.appendIsExact,
    config,
    embedding: {
      ...scheme.layout,
      ...(table !== precision && table !== 'fp32' && { type: table }),
    },
    graphs: graphEntries,
    vectors: { file: VECTOR_FILE, tolerance: TOLERANCE[precision] },
    files: Object.fromEntries([...files].sort(([a], [b]) => (a < b ? -1 : 1))),
  }
  const written = { ...content, config: statedOf(config) }
  const version = contentVersion(written)
  const json = JSON.stringify({ ...written, version }, null, 2)
  writeFileSync(`${folder}/${MANIFEST_FILE}`, `${json}\n`)
  return { ...content, version }
}

type AnyGraph = GraphName | RetrievalGraphName
const GRAPHS: readonly AnyGraph[] = ['prefill', 'score', 'rank', 'encode', 'retrieve']
const graphFile = (name: AnyGraph) => `${name}.onnx`
/** Names that no file of a config may have. */
const OWN_FILES = new Set([WEIGHT_FILE, MANIFEST_FILE, VECTOR_FILE, ...GRAPHS.map(graphFile)])

/** Vocabularies, indices of lists of ids, catalogue and candidate list; each is told to `add`. */
function writeConfigFiles(
  folder: string,
  { config, folder: from, onWritten }: ExportOptions,
  add: (file: string) => void,
): void {
  const lists = idLists(config)
  for (const file of configFiles(config)) {
    if (!isSafe(file)) {
      throw new RankError(
        'CONFIG_INVALID',
        `file names must stay in the model's folder, got ${file}`,
      )
    }
    if (OWN_FILES.has(file)) {
      throw new RankError('CONFIG_INVALID', `${file} is a name of the bundle's own files`)
    }
    mkdirSync(dirname(`${folder}/${file}`), { recursive: true })
    const list = lists.get(file)
    if (list === undefined) {
      readJson(`${from}/${file}`, 'CONFIG_INVALID')
      copyFileSync(`${from}/${file}`, `${folder}/${file}`)
    } else {
      writeIdIndex(`${from}/${list.from}`, `${folder}/${file}`, list.count, onWritten)
    }
    add(file)
  }
}

/** The variant's tensors, the table as it is stored, and where there is a retrieval head what that adds. */
function weightTensors(options: ExportOptions, folder: string): Map<string, Tensor> {
  const { config, source, precision, table = precision } = options
  const { tensors, table: parts, graphs } = exportVariant(config)
  const stored = withStoredTable(tensors(source), STORED_AS[table])
  const { candidates } = readVocabulary(config, folder)
  if (candidates === undefined) return stored
  const rows = asStored(source, parts, STORED_AS[table])
  return new Map([...stored, ...retrievalTensors(candidates, rows, graphs.itemNormEps ?? 0)])
}

/** By the index's name: the list that it is made of, and how many ids that must have. */
function idLists(config: HstuConfig): Map<string, { from: string; count: number }> {
  const features = [...config.context, ...config.itemFeatures, ...config.auxiliary]
  const lists = new Map<string, { from: string; count: number }>()
  for (const { rows = 1, encoding } of features) {
    if (encoding?.kind !== 'vocabulary' || !isIdList(encoding.file)) continue
    const { file, buckets = 0 } = encoding
    lists.set(indexFileOf(file), { from: file, count: rows - 1 - buckets })
  }
  return lists
}

/**
 * Sample requests with the oracle's logits over the table as it is stored: what that costs is told, not
 * hidden in them. A request whose logits hang on the last bits of the weights says nothing about an engine
 * and is left out: over a single key, LayerNorm keeps of SiLU(q·k) v little but the sign of q·k, which
 * rounding may turn. All stay where all are like that. `folder`: the bundle's, which has the vocabularies.
 */
function vectorsJson(options: ExportOptions, folder: string): string {
  const { config, source, precision, table = precision, createOracle } = options
  const vocabulary = readVocabulary(config, folder)
  const tasks = config.tasks.length
  const isRounded = table !== precision
  const stored = isRounded
    ? asStored(source, exportVariant(config).table, STORED_AS[table])
    : source
  const oracle = createOracle(stored)
  const rounded = createOracle(roundedToBf16(stored))
  const exact = isRounded ? createOracle(source) : oracle
  let tableError = 0
  const cases = sampleRequests(vocabulary, VECTOR_SEED).map((request: RankInput) => {
    const history = buildHistory(request, vocabulary)
    const candidates = buildCandidates(request, vocabulary, history)
    const { logits } = oracle(history.tokens, candidates.rows, request.time)
    const bad = logits.find((logit) => !Number.isFinite(Math.fround(logit)))
    if (bad !== undefined) {
      throw new RankError(
        'WEIGHTS_INVALID',
        `logits must fit float32, got ${bad} for a sample request: the weights overflow`,
      )
    }
    const ofFloats = isRounded
      ? exact(history.tokens, candidates.rows, request.time).logits
      : logits
    logits.forEach((logit, i) => {
      tableError = Math.max(tableError, Math.abs(logit - (ofFloats[i] ?? Number.NaN)))
    })
    const moved = rounded(history.tokens, candidates.rows, request.time).logits
    const isSteady = logits.every((x, i) => Math.abs(x - (moved[i] ?? 0)) <= MOST_MOVED)
    // Float32 digits: libm differences of the last float64 bit must not change the file.
    const rows = request.candidates.map((_, i) =>
      Array.from(logits.subarray(i * tasks, (i + 1) * tasks), (x) => Number(x.toPrecision(7))),
    )
    return { isSteady, vector: { request, logits: rows } }
  })
  if (isRounded) options.onTableError?.(tableError)
  const steady = cases.filter(({ isSteady }) => isSteady)
  const kept = steady.length > 0 ? steady : cases
  return `${JSON.stringify(kept.map(({ vector }) => vector))}\n`
}
