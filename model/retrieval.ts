import { show } from './check.js'
import { itemIdOf } from './config.js'
import { RankError } from './errors.js'
import type { Vocabulary } from './vocabulary.js'

/** The items that retrieval ranks over, in their order. */
export type CandidateList = {
  readonly length: number
  /** Id of the item at a place, `[0, length)`. */
  itemAt(place: number): string
  /** Place of an id; undefined for one that is not in the list. */
  placeOf(item: string): number | undefined
  /** Rows `[start, end)` of the list in the bundle's embedding table. */
  rows(start: number, end: number): Int32Array
}

type Items = Pick<Vocabulary, 'config' | 'layout' | 'itemAt' | 'writeItem'>

/**
 * The candidate list of a model with a retrieval head; undefined for one without. `read` gives the parsed
 * JSON of a file that the config names.
 * @throws {RankError} CONFIG_INVALID when the file lists no ids, one twice, or one that the model does not know
 */
export function openCandidateList(
  items: Items,
  read: (file: string) => unknown,
): CandidateList | undefined {
  const { retrieval } = items.config
  if (retrieval === undefined) return undefined
  return retrieval.candidates === undefined
    ? wholeTable(items)
    : listed(items, retrieval.candidates, read(retrieval.candidates))
}

/** Every item but the unknown one and those that share buckets, in the order of the table's rows. */
function wholeTable(items: Items): CandidateList {
  const { offset, rows } = itemTable(items)
  const rowOf = rowWriter(items)
  const length = rows - 1 - bucketsOf(items)
  return {
    length,
    itemAt(place) {
      const item = items.itemAt(place + 1)
      if (item === undefined) throw new RangeError(`no item at place ${place}`)
      return item
    },
    placeOf(item) {
      const place = (rowOf(item) ?? offset) - offset - 1
      return place >= 0 && place < length ? place : undefined
    },
    rows: (start, end) =>
      Int32Array.from({ length: end - start }, (_, i) => offset + 1 + start + i),
  }
}

function listed(items: Items, file: string, value: unknown): CandidateList {
  const fail = (message: string) => new RankError('CONFIG_INVALID', `${file} ${message}`)
  if (!Array.isArray(value) || value.length === 0) {
    throw fail('must be a JSON array of item ids, at least one')
  }
  const rowOf = rowWriter(items)
  const { offset } = itemTable(items)
  // Two spellings of an id that alone has its row, 7 and 07, are one item.
  const spelt = (item: string, row: number) => items.itemAt(row - offset) ?? item
  const ids = new Array<string>(value.length)
  const rows = new Int32Array(value.length)
  const places = new Map<string, number>()
  for (const [place, id] of value.entries()) {
    if (typeof id !== 'string' && !Number.isSafeInteger(id)) {
      throw fail(`must list strings or whole numbers, got ${show(id)} at /${place}`)
    }
    const item = String(id)
    const row = rowOf(item)
    if (row === undefined) {
      throw fail(`must list items of the vocabulary, got ${show(item)} at /${place}`)
    }
    const spelling = spelt(item, row)
    const earlier = places.get(spelling)
    if (earlier !== undefined) throw fail(`lists ${show(item)} twice, at /${earlier} and /${place}`)
    places.set(spelling, place)
    ids[place] = item
    rows[place] = row
  }
  return {
    length: ids.length,
    itemAt: (place) => ids[place] ?? '',
    placeOf(item) {
      const place = places.get(item)
      if (place !== undefined) return place
      const row = rowOf(item)
      return row === undefined ? undefined : places.get(spelt(item, row))
    },
    rows: (start, end) => rows.slice(start, end),
  }
}

/** The table that item ids have rows in; row 0 of it is the unknown item. */
function itemTable({ config, layout }: Items): { readonly offset: number; readonly rows: number } {
  const name = `item.${itemIdOf(config)}`
  const table = layout.tables.find((each) => each.name === name)
  if (table === undefined) throw new Error(`no table ${name}`)
  return table
}

/** Rows at the table's end that ids share which no list has. */
function bucketsOf({ config }: Items): number {
  const { encoding } = config.itemFeatures.find(({ name }) => name === itemIdOf(config)) ?? {}
  return encoding?.kind === 'vocabulary' ? (encoding.buckets ?? 0) : 0
}

/** Row of an id in the whole embedding table. */
function rowWriter({ config, writeItem }: Items): (item: string) => number | undefined {
  const slot = config.itemFeatures.findIndex(({ name }) => name === itemIdOf(config))
  const rows = new Int32Array(config.itemFeatures.length)
  return (item) => (writeItem(item, undefined, rows, 0) ? rows[slot] : undefined)
}
