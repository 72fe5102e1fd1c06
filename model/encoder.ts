import { show } from './check.js'
import type { ModelFeature } from './config.js'
import { RankError } from './errors.js'
import { type IdIndex, indexFileOf, isIdList } from './id-index.js'
import type { FeatureValue } from './request.js'

/** Row of a raw value in its own table; 0 for an unknown or missing one. */
type Encode = (value: FeatureValue | undefined) => number

/** From raw values to the rows of one table. */
export type Encoder = {
  readonly encode: Encode
  /** Of many values together, where that is faster. */
  readonly encodeAll?: (values: readonly string[]) => Int32Array
  /** The value that alone has this row of the table; undefined where several may. */
  readonly valueAt: (row: number) => string | undefined
}

/** Of a config's files: the parsed JSON of one, the index of a list of ids. */
export type VocabularyFiles = {
  readonly read: (file: string) => unknown
  readonly openIds: (file: string) => IdIndex
}

const NOBODYS = () => undefined

/** @throws {RankError} CONFIG_INVALID when the vocabulary does not fit the table */
export function createEncoder(
  table: string,
  rows: number,
  encoding: NonNullable<ModelFeature['encoding']> = { kind: 'row' },
  files: VocabularyFiles,
): Encoder {
  const isRow = (row: number) => Number.isInteger(row) && row >= 1 && row < rows
  switch (encoding.kind) {
    case 'row':
      return {
        encode(value) {
          const row = typeof value === 'string' ? numberOfDigits(value) : value
          return row !== undefined && isRow(row) ? row : 0
        },
        valueAt: (row) => (isRow(row) ? String(row) : undefined),
      }
    case 'index':
      return {
        encode(value) {
          const digits = (text: string) => (text === '0' ? 0 : numberOfDigits(text) || -1)
          const row = 1 + (typeof value === 'string' ? digits(value) : (value ?? -1))
          return isRow(row) ? row : 0
        },
        valueAt: (row) => (isRow(row) ? String(row - 1) : undefined),
      }
    case 'vocabulary': {
      const { file, buckets = 0 } = encoding
      const { count, indexOf, indicesOf, idAt } = isIdList(file)
        ? files.openIds(indexFileOf(file))
        : listedIn(files.read(file), file)
      if (count + 1 + buckets !== rows) {
        const own = rows - 1 - buckets
        throw new RankError(
          'CONFIG_INVALID',
          `${table} has ${rows} rows${buckets > 0 ? `, ${buckets} of them buckets` : ''}: ${file} must list ${own} values, got ${count}`,
        )
      }
      const rowAt = (index: number, text: string) =>
        index >= 0 || buckets === 0 ? 1 + index : 1 + count + (fnv1a(text) % buckets)
      return {
        encode(value) {
          if (value === undefined) return 0
          const text = String(value)
          return rowAt(indexOf(text), text)
        },
        ...(indicesOf !== undefined && {
          encodeAll: (texts) => indicesOf(texts).map((index, i) => rowAt(index, texts[i] ?? '')),
        }),
        valueAt: (row) => idAt(row - 1),
      }
    }
    case 'hash':
      return {
        encode: (value) => (value === undefined ? 0 : 1 + (fnv1a(String(value)) % (rows - 1))),
        valueAt: NOBODYS,
      }
    case 'bucket': {
      const { edges } = encoding
      return {
        encode(value) {
          const x = typeof value === 'string' && value.trim() !== '' ? Number(value) : value
          return typeof x === 'number' && !Number.isNaN(x) ? 1 + countAtMost(edges, x) : 0
        },
        valueAt: NOBODYS,
      }
    }
  }
}

/** The values of a vocabulary that is one JSON array. */
function listedIn(
  values: unknown,
  file: string,
): Omit<IdIndex, 'bytes' | 'indicesOf'> & { readonly indicesOf?: undefined } {
  if (!Array.isArray(values) || !values.every((v) => typeof v === 'string')) {
    throw new RankError('CONFIG_INVALID', `${file} must be a JSON array of strings`)
  }
  const places = new Map<string, number>()
  for (const [i, value] of values.entries()) {
    const earlier = places.get(value)
    if (earlier !== undefined) {
      const message = `${file} has ${show(value)} twice, at /${earlier} and /${i}`
      throw new RankError('CONFIG_INVALID', message)
    }
    places.set(value, i)
  }
  return {
    count: values.length,
    indexOf: (id) => places.get(id) ?? -1,
    idAt: (index) => values[index],
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
