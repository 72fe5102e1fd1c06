import { isRecord } from '../../server/fault.js'
import { type Json, record } from './document.js'

export type Random = () => number

/** Words that a model knows, by the name of the property that holds them, or whose keys they are. */
export type Words = { readonly [property: string]: readonly string[] }

export function pick<T>(random: Random, [first, ...rest]: readonly [T, ...T[]]): T {
  const i = Math.floor(random() * (rest.length + 1))
  return i === 0 ? first : (rest[i - 1] ?? first)
}

export function below(random: Random, limit: number): number {
  return Math.floor(random() * limit)
}

const MAX_LENGTH = 6
/** How often a word of the model is taken, and a property that need not be there. */
const KNOWN = 0.9
const OPTIONAL = 0.4

/** A value that `schema` allows; `property` is the name that it stands under. */
export function sample(schema: Json, random: Random, words: Words, property = ''): unknown {
  const one = listOf(schema.anyOf ?? schema.oneOf)
  if (one.length > 0) return sample(one[below(random, one.length)] ?? {}, random, words, property)
  if ('const' in schema) return schema.const
  if (Array.isArray(schema.enum)) return schema.enum[below(random, schema.enum.length)]
  switch (schema.type) {
    case 'object':
      return objectOf(schema, random, words, property)
    case 'array': {
      const min = numberOf(schema.minItems, 0)
      const max = Math.max(min, Math.min(numberOf(schema.maxItems, MAX_LENGTH), MAX_LENGTH))
      const items = listOf([schema.items])[0] ?? {}
      return Array.from({ length: min + below(random, max - min + 1) }, () =>
        sample(items, random, words, property),
      )
    }
    case 'string':
      return stringOf(schema, random, words[property])
    case 'integer':
    case 'number':
      return numberBetween(schema, random)
    case 'boolean':
      return random() < 0.5
    case 'null':
      return null
    default:
      return anything(random)
  }
}

/** Any JSON, two levels deep at most. */
export function anything(random: Random, depth = 0): unknown {
  const make = pick<() => unknown>(random, [
    () => null,
    () => random() < 0.5,
    () => below(random, 1000) - 500,
    () => random() * 10 ** (below(random, 40) - 20),
    () => text(random, 12),
    () => (depth < 2 ? [anything(random, depth + 1), anything(random, depth + 1)] : []),
    () => (depth < 2 ? { [text(random, 6)]: anything(random, depth + 1) } : {}),
  ])
  return make()
}

/** Of `length` characters: letters, signs that other languages use, and those that break things. */
export function text(random: Random, length: number): string {
  const characters = 'abz019-_./~ \\"\'<>{}[]%&$#\n\t\0\u007fäß語🦅\u2028\ud800\uffff'
  return Array.from({ length }, () => characters[below(random, characters.length)]).join('')
}

function objectOf(schema: Json, random: Random, words: Words, property: string): Json {
  const required = new Set(Array.isArray(schema.required) ? schema.required : [])
  const fixed = Object.entries(isRecord(schema.properties) ? schema.properties : {})
    .filter(([name]) => required.has(name) || random() < OPTIONAL)
    .map(([name, value]) => [name, sample(record(value), random, words, name)])
  const more = isRecord(schema.additionalProperties) ? schema.additionalProperties : undefined
  if (more === undefined) return Object.fromEntries(fixed)
  const free = Array.from({ length: below(random, 4) }, () => [
    stringOf({ minLength: 1, maxLength: 128 }, random, words[property]),
    sample(more, random, words),
  ])
  return Object.fromEntries([...fixed, ...free])
}

function stringOf(schema: Json, random: Random, words: readonly string[] = []): string {
  if (words.length > 0 && random() < KNOWN) return words[below(random, words.length)] ?? ''
  const min = numberOf(schema.minLength, 0)
  const max = numberOf(schema.maxLength, 64)
  const length = random() < 0.05 ? max : Math.min(max, min + below(random, 12))
  return text(random, length)
}

function numberBetween(schema: Json, random: Random): number {
  const isInteger = schema.type === 'integer'
  const min = numberOf(schema.minimum, isInteger ? -1000 : -1e9)
  const max = numberOf(schema.maximum, isInteger ? 10_000 : 1e9)
  const at = random()
  if (at < 0.05) return min
  if (at < 0.1) return max
  // Small ones are the common ones.
  const value = min + (max - min) * random() ** (1 + below(random, 8))
  return isInteger ? Math.round(value) : value
}

function numberOf(value: unknown, fallback: number): number {
  return typeof value === 'number' ? value : fallback
}

function listOf(value: unknown): readonly Json[] {
  return Array.isArray(value) ? value.filter(isRecord) : []
}
