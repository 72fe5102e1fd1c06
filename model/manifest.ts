import { createHash } from 'node:crypto'
import Type, { type Static } from 'typebox'
import { Compile } from 'typebox/compile'
import { check, show } from './check.js'
import { type HstuConfig, parseConfig, readJson } from './config.js'
import type { EmbeddingLayout } from './embedding.js'
import { RankError } from './errors.js'
import { type ExpectedFile, type FoundFile, inspectFiles } from './file-hash.js'
import { indexFileOf, isIdList } from './id-index.js'
import { embeddingLayout } from './schemes.js'
import { readVocabulary, type Vocabulary } from './vocabulary.js'

export const SCHEMA_VERSION = 1
export const MANIFEST_FILE = 'manifest.json'
const VERSION_DIGITS = 16

const FileName = Type.String({ minLength: 1, maxLength: 256 })

const GraphValueSchema = Type.Object(
  {
    name: Type.String(),
    type: Type.String(),
    dims: Type.Array(Type.Union([Type.Integer(), Type.String()]), { maxItems: 8 }),
  },
  { additionalProperties: false },
)

const Graph = Type.Object(
  {
    file: FileName,
    inputs: Type.Array(GraphValueSchema, { maxItems: 4096 }),
    outputs: Type.Array(GraphValueSchema, { maxItems: 4096 }),
  },
  { additionalProperties: false },
)

const Manifest = Type.Object(
  {
    schemaVersion: Type.Literal(SCHEMA_VERSION),
    name: Type.String({ minLength: 1, maxLength: 128 }),
    version: Type.String({ pattern: '^[0-9a-f]{16}$' }),
    producer: Type.String({ maxLength: 128 }),
    precision: Type.Union([Type.Literal('fp32'), Type.Literal('fp16')]),
    // Old K/V stays valid when events are appended (spec: true for `paper`).
    appendIsExact: Type.Boolean(),
    config: Type.Unknown(),
    embedding: Type.Object(
      {
        rows: Type.Integer(),
        slots: Type.Integer(),
        // What the table's rows are stored as; the bundle's precision where absent.
        type: Type.Optional(Type.Union([Type.Literal('fp16'), Type.Literal('int8')])),
        tables: Type.Array(
          Type.Object(
            { name: Type.String(), rows: Type.Integer(), offset: Type.Integer() },
            { additionalProperties: false },
          ),
        ),
      },
      { additionalProperties: false },
    ),
    graphs: Type.Object(
      {
        ...{ prefill: Graph, score: Graph, rank: Graph },
        // Of a retrieval head: both or none.
        ...{ encode: Type.Optional(Graph), retrieve: Type.Optional(Graph) },
      },
      { additionalProperties: false },
    ),
    vectors: Type.Object(
      { file: FileName, tolerance: Type.Number({ exclusiveMinimum: 0 }) },
      { additionalProperties: false },
    ),
    files: Type.Record(
      Type.String(),
      Type.Object(
        { sha256: Type.String({ pattern: '^[0-9a-f]{64}$' }), bytes: Type.Integer({ minimum: 0 }) },
        { additionalProperties: false },
      ),
    ),
  },
  { additionalProperties: false },
)

export type Precision = 'fp32' | 'fp16'
/** What products are computed in: kernels may round more than the bundle's weights are. */
export type Arithmetic = Precision | 'bf16'
/** One input or output of a graph; a named dimension is known at run time only. */
export type GraphValue = {
  readonly name: string
  readonly type: string
  readonly dims: readonly (number | string)[]
}
export type GraphContract = {
  readonly file: string
  readonly inputs: readonly GraphValue[]
  readonly outputs: readonly GraphValue[]
}
export type GraphName = 'prefill' | 'score' | 'rank'
/** The user at the end of a history, and the best items of the candidate list for that. */
export type RetrievalGraphName = 'encode' | 'retrieve'
export type Manifest = Omit<Static<typeof Manifest>, 'config' | 'embedding' | 'graphs'> & {
  readonly config: HstuConfig
  readonly embedding: EmbeddingLayout & { readonly type?: 'fp16' | 'int8' }
  readonly graphs: Readonly<Record<GraphName, GraphContract>> &
    Readonly<Partial<Record<RetrievalGraphName, GraphContract>>>
}

/** Whether the bundle has a retrieval head. */
export function hasRetrieval({ graphs }: Pick<Manifest, 'graphs'>): boolean {
  return graphs.encode !== undefined && graphs.retrieve !== undefined
}

/** A bundle whose files were all found, hashed and understood. */
export type Bundle = {
  readonly folder: string
  readonly manifest: Manifest
  readonly vocabulary: Vocabulary
}

const compiled = Compile(Manifest)

/**
 * Opens a bundle and checks it: every file present with its size and SHA-256, version = content.
 * @throws {RankError} BUNDLE_INVALID or CONFIG_INVALID naming the file or field
 */
export function openBundle(
  folder: string,
  { filesAreChecked = false }: { readonly filesAreChecked?: boolean } = {},
): Bundle {
  const manifest = readManifest(folder)
  if (!filesAreChecked) {
    checkFiles(folder, manifest, inspectFiles(expectedFiles(folder, manifest)))
  }
  return bundleOf(folder, manifest)
}

/**
 * A bundle's manifest, which fits itself; nothing else is read.
 * @throws {RankError} BUNDLE_INVALID or CONFIG_INVALID naming the field
 */
export function readManifest(folder: string): Manifest {
  const raw = readJson(`${folder}/${MANIFEST_FILE}`, 'BUNDLE_INVALID')
  const parsed = check(compiled, raw, 'BUNDLE_INVALID', `${folder}/${MANIFEST_FILE}`)
  const manifest: Manifest = { ...parsed, config: parseConfig(parsed.config) }
  const version = contentVersion(parsed)
  if (version !== manifest.version) {
    throw invalid(
      folder,
      `version must be the hash of the manifest's content, ${version}, got ${manifest.version}`,
    )
  }
  for (const file of Object.keys(manifest.files)) {
    if (!isSafe(file)) throw invalid(folder, `file name ${show(file)} leaves the bundle`)
  }
  for (const file of namedFiles(manifest)) {
    if (!Object.hasOwn(manifest.files, file)) {
      throw invalid(folder, `${show(file)} is used but not listed under files`)
    }
  }
  const layout = embeddingLayout(manifest.config)
  const { type: _, ...stated } = manifest.embedding
  if (JSON.stringify(layout) !== JSON.stringify({ ...layout, ...stated })) {
    throw invalid(folder, 'embedding does not follow from config')
  }
  return manifest
}

/** The files that a manifest lists. */
export function expectedFiles(folder: string, { files }: Manifest): ExpectedFile[] {
  return Object.entries(files).map(([file, { bytes }]) => ({ path: `${folder}/${file}`, bytes }))
}

/**
 * @param found - of each of `expectedFiles`, in their order
 * @throws {RankError} BUNDLE_INVALID when one is not as the manifest says
 */
export function checkFiles(folder: string, { files }: Manifest, found: readonly FoundFile[]): void {
  const listed = Object.entries(files).map(([file, expected], i) => {
    const got: FoundFile = found[i] ?? { kind: 'none' }
    return { file, expected, got }
  })
  // Hashes last: where a size is wrong none was made.
  for (const { file, expected, got } of listed) {
    if (got.kind === 'none') throw invalid(folder, `${file} is missing`)
    if (got.kind === 'unreadable') throw invalid(folder, `cannot read ${show(file)}: ${got.why}`)
    if (got.bytes !== expected.bytes) {
      throw invalid(folder, `${file} must have ${expected.bytes} bytes, got ${got.bytes}`)
    }
  }
  for (const { file, expected, got } of listed) {
    const sha256 = got.kind === 'file' ? got.sha256 : undefined
    if (sha256 !== expected.sha256) {
      throw invalid(folder, `${file} must have SHA-256 ${expected.sha256}, got ${sha256}`)
    }
  }
}

/**
 * Reads the vocabularies of a bundle whose files were checked.
 * @throws {RankError} CONFIG_INVALID when one does not fit the config
 */
export function bundleOf(folder: string, manifest: Manifest): Bundle {
  return { folder, manifest, vocabulary: readVocabulary(manifest.config, folder) }
}

/**
 * For a bundle whose files were checked some time before they were read.
 * @throws {RankError} BUNDLE_INVALID when another one lies in its place by now
 */
export function checkUnchanged({ folder, manifest }: Bundle): void {
  const { version } = readManifest(folder)
  if (version === manifest.version) return
  throw invalid(folder, `was version ${manifest.version} and became ${version} while it was loaded`)
}

/** First digits of the SHA-256 over the manifest without its version: every file's hash is in it. */
export function contentVersion(manifest: object): string {
  const content = JSON.stringify({ ...manifest, version: undefined })
  return createHash('sha256').update(content).digest('hex').slice(0, VERSION_DIGITS)
}

/** Vocabulary files, lists of ids as their indices, catalogue and candidate list that a config names, without repeats. */
export function configFiles(config: HstuConfig): string[] {
  const encodings = [...config.context, ...config.itemFeatures, ...config.auxiliary].map(
    ({ encoding }) => encoding,
  )
  const files = encodings.flatMap((e) => {
    if (e?.kind !== 'vocabulary') return []
    return [isIdList(e.file) ? indexFileOf(e.file) : e.file]
  })
  const others = [config.catalogue, config.retrieval?.candidates]
  return [...new Set([...files, ...others.filter((file) => file !== undefined)])]
}

function namedFiles({ graphs, vectors, config }: Manifest): string[] {
  const graphFiles = Object.values(graphs).map(({ file }) => file)
  return [...graphFiles, vectors.file, ...configFiles(config)]
}

/** Relative and downward only: a manifest must not read outside its folder. */
export function isSafe(file: string): boolean {
  return /^[\w.-]+(\/[\w.-]+)*$/.test(file) && !file.split('/').includes('..')
}

function invalid(folder: string, message: string): RankError {
  return new RankError('BUNDLE_INVALID', `bundle ${folder}: ${message}`)
}
