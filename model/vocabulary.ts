import { show } from './check.js'
import { type HstuConfig, itemIdOf, type ModelFeature, readJson } from './config.js'
import type { EmbeddingLayout } from './embedding.js'
import { RankError } from './errors.js'
import type { Features, FeatureValue } from './request.js'
import { type CandidateList, openCandidateList } from './retrieval.js'
import type { TokenScheme } from './scheme.js'
import { tokenScheme } from './schemes.js'

/** Row of a raw value in its own table; 0 for an unknown or missing one. */
type Encode = (value: FeatureValue | undefined) => number

type TableEncoder = { readonly offset: number; readonly encode: Encode }

/** Turns what clients send into rows of the bundle's embedding table. Immutable; shared by all requests. */
export type Vocabulary = {
  readonly config: HstuConfig
  readonly layout: EmbeddingLayout
  readonly scheme: TokenScheme
  /** Per context slot, in token order. */
  readonly context: readonly (TableEncoder & { readonly name: string })[]
  /** Per auxiliary series, in the manifest's order. */
  readonly auxiliary: readonly (TableEncoder & {
    readonly name: string
    readonly actionBit: number
  })[]
  /** Bit of each action type. */
  readonly actionBits: ReadonlyMap<string, number>
  /**
   * Writes the rows of an item's features into `out` from `at` on. A feature that the request gives wins
   * over the catalogue's. False when the item id itself is unknown.
   */
  readonly writeItem: (
    item: string,
    features: Features | undefined,
    out: Int32Array,
    at: number,
  ) => boolean
  readonly hasItemFeature: (name: string) => boolean
  /** Id of the item at a row, 1 on, of the id table; undefined where ids do not tell (hashed ones). */
  readonly itemAt: (row: number) => string | undefined
  /** What retrieval ranks over; undefined without a retrieval head. */
  readonly candidates: CandidateList | undefined
  /** Item ids that the catalogue or the id vocabulary lists, for samples and calibration. */
  readonly knownItems: () => string[]
}

/**
 * Builds the encoders of a config; `read` gives the parsed JSON of a file that it names.
 * @throws {RankError} CONFIG_INVALID when a vocabulary or the catalogue does not fit its table
 */
export function createVocabulary(config: HstuConfig, read: (file: string) => unknown): Vocabulary {
  const scheme = tokenScheme(config)
  const { layout } = scheme
  const offsets = new Map(layout.tables.map(({ name, offset }) => [name, offset]))
  const encoder = (
    table: string,
    rows: number,
    encoding: ModelFeature['encoding'],
  ): TableEncoder => ({
    offset: offsets.get(table) ?? 0,
    encode: createEncode(table, rows, encoding, read),
  })
  const items = config.itemFeatures.map(({ name, rows, encoding, table = `item.${name}` }) => ({
    name,
    ...encoder(table, rows, encoding),
  }))
  const itemNames = new Set(items.map(({ name }) => name))
  const itemTables = new Map(items.map((feature) => [`item.${feature.name}`, feature]))
  const slots = items.length
  const idSlot = items.findIndex(({ name }) => name === itemIdOf(config))
  const catalogue = readCatalogue(config, items, slots, read)
  const unknownItem = Int32Array.from(items, ({ offset }) => offset)

  const writeItem = (item: string, features: Features | undefined, out: Int32Array, at: number) => {
    const base = catalogue.rowOf.get(item)
    for (let s = 0; s < slots; s++) {
      out[at + s] =
        base === undefined ? (unknownItem[s] ?? 0) : (catalogue.rows[base * slots + s] ?? 0)
    }
    const id = items[idSlot]
    const row = id === undefined ? 0 : id.encode(item)
    if (id !== undefined) out[at + idSlot] = id.offset + row
    if (features !== undefined) {
      for (let s = 0; s < slots; s++) {
        const feature = items[s]
        if (feature === undefined || s === idSlot) continue
        // A feature may be called `constructor`: only own properties count.
        const value = Object.hasOwn(features, feature.name) ? features[feature.name] : undefined
        if (value !== undefined) out[at + s] = feature.offset + feature.encode(value)
      }
    }
    return row !== 0
  }

  const itemAt = createDecode(config.itemFeatures[idSlot], read)

  return {
    config,
    layout,
    scheme,
    itemAt,
    candidates: openCandidateList({ config, layout, itemAt, writeItem }, read),
    context: config.context.map(({ name, rows, encoding, table = `ctx.${name}` }) => ({
      name,
      ...encoder(table, rows, encoding),
    })),
    auxiliary: config.auxiliary.map(({ name, table, rows, encoding, action }) => ({
      ...(itemTables.get(table) ?? encoder(table, rows ?? 1, encoding)),
      name,
      actionBit: config.actions.indexOf(action),
    })),
    actionBits: new Map(config.actions.map((name, bit) => [name, bit])),
    writeItem,
    hasItemFeature: (name) => itemNames.has(name),
    knownItems: () => {
      if (catalogue.rowOf.size > 0) return [...catalogue.rowOf.keys()]
      const rows = config.itemFeatures[idSlot]?.rows ?? 1
      return Array.from({ length: Math.min(rows - 1, 100_000) }, (_, i) => String(i + 1))
    },
  }
}

function createEncode(
  table: string,
  rows: number,
  encoding: NonNullable<ModelFeature['encoding']> = { kind: 'row' },
  read: (file: string) => unknown,
): Encode {
  switch (encoding.kind) {
    case 'row':
      return (value) => {
        const row = typeof value === 'string' ? numberOfDigits(value) : value
        return row !== undefined && Number.isInteger(row) && row >= 1 && row < rows ? row : 0
      }
    case 'index':
      return (value) => {
        const digits = (text: string) => (text === '0' ? 0 : numberOfDigits(text) || -1)
        const row = 1 + (typeof value === 'string' ? digits(value) : (value ?? -1))
        return Number.isInteger(row) && row >= 1 && row < rows ? row : 0
      }
    case 'vocabulary': {
      const values = read(encoding.file)
      if (!Array.isArray(values) || !values.every((v) => typeof v === 'string')) {
        throw new RankError('CONFIG_INVALID', `${encoding.file} must be a JSON array of strings`)
      }
      if (values.length + 1 !== rows) {
        throw new RankError(
          'CONFIG_INVALID',
          `${table} has ${rows} rows: ${encoding.file} must list ${rows - 1} values, got ${values.length}`,
        )
      }
      const rowOf = new Map(values.map((value, i) => [value, i + 1]))
      return (value) => (value === undefined ? 0 : (rowOf.get(String(value)) ?? 0))
    }
    case 'hash':
      return (value) => (value === undefined ? 0 : 1 + (fnv1a(String(value)) % (rows - 1)))
    case 'bucket': {
      const { edges } = encoding
      return (value) => {
        const x = typeof value === 'string' && value.trim() !== '' ? Number(value) : value
        return typeof x === 'number' && !Number.isNaN(x) ? 1 + countAtMost(edges, x) : 0
      }
    }
  }
}

/** The raw value at a row, 1 on, of a feature's table; undefined where rows do not tell. */
function createDecode(
  feature: ModelFeature | undefined,
  read: (file: string) => unknown,
): (row: number) => string | undefined {
  const { rows = 1, encoding = { kind: 'row' } } = feature ?? {}
  const isThere = (row: number) => row >= 1 && row < rows
  switch (encoding.kind) {
    case 'row':
      return (row) => (isThere(row) ? String(row) : undefined)
    case 'index':
      return (row) => (isThere(row) ? String(row - 1) : undefined)
    case 'vocabulary': {
      const values = read(encoding.file)
      return (row) => (Array.isArray(values) ? values[row - 1] : undefined)
    }
    case 'hash':
    case 'bucket':
      return () => undefined
  }
}

/** Digits only, else 0: '0x10', '1e1' and ' 7' are ids of their own, and unknown. */
function numberOfDigits(text: string): number {
  let number = 0
  for (let i = 0; i < text.length; i++) {
    const digit = text.charCodeAt(i) - 48
    if (digit < 0 || digit > 9) return 0
    number = 10 * number + digit
  }
  return number
}

/** Number of ascending `edges` that are <= x (binary search). */
function countAtMost(edges: readonly number[], x: number): number {
  let low = 0
  let high = edges.length
  while (low < high) {
    const middle = (low + high) >> 1
    if ((edges[middle] ?? Number.POSITIVE_INFINITY) <= x) low = middle + 1
    else high = middle
  }
  return low
}

/** FNV-1a, 32 bit, over the UTF-8 bytes. @see http://www.isthe.com/chongo/tech/comp/fnv/ */
export function fnv1a(text: string): number {
  let hash = 0x811c9dc5
  for (const byte of Buffer.from(text, 'utf8')) hash = Math.imul(hash ^ byte, 0x01000193)
  return hash >>> 0
}

/** Per known item its row in `rows` (items, slots), already encoded and offset. */
type Catalogue = { readonly rowOf: ReadonlyMap<string, number>; readonly rows: Int32Array }

function readCatalogue(
  config: HstuConfig,
  features: readonly (TableEncoder & { readonly name: string })[],
  slots: number,
  read: (file: string) => unknown,
): Catalogue {
  if (config.catalogue === undefined) return { rowOf: new Map(), rows: new Int32Array(0) }
  const file = config.catalogue
  const fail = (message: string) => new RankError('CONFIG_INVALID', `${file} ${message}`)
  const value = read(file)
  if (
    typeof value !== 'object' ||
    value === null ||
    !('features' in value) ||
    !('items' in value)
  ) {
    throw fail('must be {features: [name], items: {id: [value]}}')
  }
  const { features: names, items } = value
  if (!Array.isArray(names) || typeof items !== 'object' || items === null) {
    throw fail('must be {features: [name], items: {id: [value]}}')
  }
  const columns = names.map((name) => {
    const slot = features.findIndex((feature) => feature.name === name)
    if (slot === -1) throw fail(`names ${show(name)}, which is no item feature`)
    return slot
  })
  const entries = Object.entries(items)
  const rows = new Int32Array(entries.length * slots)
  const rowOf = new Map<string, number>()
  entries.forEach(([id, values], i) => {
    if (!Array.isArray(values) || values.length !== columns.length) {
      throw fail(`must give item ${show(id)} ${columns.length} values, got ${show(values)}`)
    }
    rowOf.set(id, i)
    features.forEach(({ offset }, s) => {
      rows[i * slots + s] = offset
    })
    columns.forEach((slot, c) => {
      const feature = features[slot]
      if (feature !== undefined)
        rows[i * slots + slot] = feature.offset + feature.encode(values[c] ?? undefined)
    })
  })
  return { rowOf, rows }
}

/** The vocabulary of a model folder: files are looked up beside its config. */
export function readVocabulary(config: HstuConfig, folder: string): Vocabulary {
  return createVocabulary(config, (file) => readJson(`${folder}/${file}`, 'CONFIG_INVALID'))
}
