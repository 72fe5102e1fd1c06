import { show } from './check.js'
import { type HstuConfig, itemIdOf, type ModelFeature, readJson } from './config.js'
import type { EmbeddingLayout } from './embedding.js'
import { createEncoder, type Encoder } from './encoder.js'
import { RankError } from './errors.js'
import { type IdIndex, openIdIndex } from './id-index.js'
import type { Features } from './request.js'
import { type CandidateList, openCandidateList } from './retrieval.js'
import type { TokenScheme } from './scheme.js'
import { tokenScheme } from './schemes.js'

type TableEncoder = Encoder & { readonly offset: number }

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
  /** Action mask of an event that gives no actions; 0 where the model has none for it. */
  readonly unobservedMask: number
  /**
   * Writes the rows of an item's features into `out` from `at` on. A feature that the request gives wins
   * over the catalogue's. `row` is what `idRows` gave for it. False when the item id itself is unknown.
   */
  readonly writeItem: (
    item: string,
    features: Features | undefined,
    out: Int32Array,
    at: number,
    row?: number,
  ) => boolean
  /** Rows of many items' ids in the id's own table; absent where looking them up together is no faster. */
  readonly idRows: ((items: readonly string[]) => Int32Array) | undefined
  readonly hasItemFeature: (name: string) => boolean
  /** What retrieval ranks over; undefined without a retrieval head. */
  readonly candidates: CandidateList | undefined
  /** Item ids of the catalogue or the id table, at most 100,000 spread over it, for samples and calibration. */
  readonly knownItems: () => string[]
  /** The item whose id alone has this row of the id's own table (row 0: unknown); undefined where there is none. */
  readonly itemAt: (row: number) => string | undefined
}

/**
 * Builds the encoders of a config; `read` gives the parsed JSON of a file that it names, `openIds` the index of
 * a list of ids.
 * @throws {RankError} CONFIG_INVALID when a vocabulary or the catalogue does not fit its table
 */
export function createVocabulary(
  config: HstuConfig,
  read: (file: string) => unknown,
  openIds: (file: string) => IdIndex = openIdIndex,
): Vocabulary {
  const files = { read, openIds }
  const scheme = tokenScheme(config)
  const { layout } = scheme
  const offsets = new Map(layout.tables.map(({ name, offset }) => [name, offset]))
  const encoder = (
    table: string,
    rows: number,
    encoding: ModelFeature['encoding'],
  ): TableEncoder => ({
    offset: offsets.get(table) ?? 0,
    ...createEncoder(table, rows, encoding, files),
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
  const hasCatalogue = catalogue.rowOf.size > 0
  const unknownItem = Int32Array.from(items, ({ offset }) => offset)

  const id = items[idSlot]
  const { unobservedAction: unobserved } = config

  const writeItem: Vocabulary['writeItem'] = (item, features, out, at, known) => {
    const base = hasCatalogue ? catalogue.rowOf.get(item) : undefined
    for (let s = 0; s < slots; s++) {
      out[at + s] =
        base === undefined ? (unknownItem[s] ?? 0) : (catalogue.rows[base * slots + s] ?? 0)
    }
    const row = known ?? id?.encode(item) ?? 0
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

  const itemAt = (row: number) => id?.valueAt(row)

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
    unobservedMask: unobserved === undefined ? 0 : 1 << config.actions.indexOf(unobserved),
    writeItem,
    idRows: id?.encodeAll,
    hasItemFeature: (name) => itemNames.has(name),
    knownItems: () => {
      if (catalogue.rowOf.size > 0) return [...catalogue.rowOf.keys()]
      const rows = config.itemFeatures[idSlot]?.rows ?? 1
      const places = spread(rows - 1, MOST_KNOWN)
      const known = places.flatMap((place) => id?.valueAt(place + 1) ?? [])
      // Hashed ids have no values to list; every text has a row.
      return known.length > 0 ? known : places.map((place) => String(place + 1))
    },
  }
}

const MOST_KNOWN = 100_000

/** 0 .. count-1, or `most` of them from first to last. */
function spread(count: number, most: number): number[] {
  if (count <= most) return Array.from({ length: count }, (_, i) => i)
  return Array.from({ length: most }, (_, i) => Math.floor((i * (count - 1)) / (most - 1)))
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
  return createVocabulary(
    config,
    (file) => readJson(`${folder}/${file}`, 'CONFIG_INVALID'),
    (file) => openIdIndex(`${folder}/${file}`),
  )
}
