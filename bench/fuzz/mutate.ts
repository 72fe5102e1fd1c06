import { isRecord } from '../../server/fault.js'
import { anything, below, pick, type Random, text } from './values.js'

/** Changes of a JSON value and of its text, each of which has broken some server. */

const NAMES = [
  '__proto__',
  'constructor',
  'prototype',
  'toString',
  'hasOwnProperty',
  '',
  '$ref',
  'then',
] as const

const NUMBERS = [
  0,
  -0,
  -1,
  0.1,
  Number.MIN_VALUE,
  2 ** 31,
  2 ** 32,
  2 ** 53,
  -(2 ** 63),
  1e21,
  Number.MAX_VALUE,
  1e300,
] as const

/** `value` with one place in it changed. */
export function changed(value: unknown, random: Random): unknown {
  const places = childrenOf(value)
  if (places.length === 0 || random() < 0.15) return hostile(value, random)
  const [name, inner] = places[below(random, places.length)] ?? ['', undefined]
  const next = changed(inner, random)
  if (Array.isArray(value)) {
    return value.map((one, i) => (String(i) === name ? next : one))
  }
  const rest = isRecord(value) ? Object.entries(value) : []
  return Object.fromEntries(rest.map(([key, one]) => [key, key === name ? next : one]))
}

function hostile(value: unknown, random: Random): unknown {
  const make = pick<() => unknown>(random, [
    () => anything(random),
    () => pick(random, NUMBERS),
    () => text(random, pick(random, [0, 1, 128, 129, 256, 257, 1024, 1025, 5000])),
    () => nested(pick(random, [3, 100, 3000]), random() < 0.5),
    // Of objects only a few: two changes inside each other would make gigabytes.
    () => Array(pick(random, [0, 65, 300, 5000])).fill(typeof value === 'object' ? {} : value),
    () => [value, value, value],
    () => [value],
    () => ({ value }),
    () => spelt(value),
    () => without(value, random),
    () => withName(value, random),
  ])
  return make()
}

/** What `toString` makes of it, where that is not one of NAMES that an earlier change put there. */
function spelt(value: unknown): string {
  try {
    return `${value}`
  } catch {
    return '[object Object]'
  }
}

/** That many arrays or objects inside each other. */
function nested(depth: number, isArray: boolean): unknown {
  let value: unknown = 1
  for (let i = 0; i < depth; i++) value = isArray ? [value] : { a: value }
  return value
}

function without(value: unknown, random: Random): unknown {
  const gone = below(random, childrenOf(value).length)
  if (Array.isArray(value)) return value.filter((_, i) => i !== gone)
  if (!isRecord(value)) return null
  return Object.fromEntries(Object.entries(value).filter((_, i) => i !== gone))
}

/** `fromEntries`, as assignment would set the prototype. */
function withName(value: unknown, random: Random): unknown {
  const name = random() < 0.7 ? pick(random, NAMES) : text(random, 5)
  const inner = pick<unknown>(random, [{ prototype: { polluted: 1 } }, { polluted: 1 }, 1, null])
  return Object.fromEntries([...(isRecord(value) ? Object.entries(value) : []), [name, inner]])
}

function childrenOf(value: unknown): readonly (readonly [string, unknown])[] {
  return typeof value === 'object' && value !== null ? Object.entries(value) : []
}

const PIECES = [
  'NaN',
  'Infinity',
  '1e999',
  '-1e999',
  '01',
  '"\\ud800"',
  '"\\u0000"',
  '/**/',
  '//',
  "'",
  ',',
  ',,',
  '}',
  ']',
  '{"a":',
  '"__proto__":{"polluted":1},',
  '"\\u005f_proto__":1,',
  '"user":null,',
  '99999999999999999999999999',
  '\ufeff',
  '\u2028',
  '\0',
] as const

/** Bytes near `json`: cut, repeated, with pieces and bytes where they do not belong. */
export function broken(json: string, random: Random): Buffer {
  const bytes = Buffer.from(json)
  const at = below(random, bytes.length + 1)
  const join = (...parts: readonly (Buffer | string)[]) =>
    Buffer.concat(parts.map((part) => Buffer.from(part)))
  const make = pick<() => Buffer>(random, [
    () => bytes.subarray(0, at),
    () => bytes.subarray(at),
    () => join(bytes, bytes),
    () => join(bytes.subarray(0, at), pick(random, PIECES), bytes.subarray(at)),
    () => join(json.replace(/[:,[{]/, (sign) => sign + pick(random, PIECES))),
    () => join('\ufeff', bytes),
    () => join(bytes.subarray(0, at), Buffer.from([0xff, 0xc0, 0x80]), bytes.subarray(at)),
    () => Buffer.from(json, 'utf16le'),
    () => {
      const copy = Buffer.from(bytes)
      for (let i = 0; i < 3; i++) copy[below(random, copy.length)] = below(random, 256)
      return copy
    },
    () => join('['.repeat(20_000)),
    () => join('{"a":'.repeat(5_000)),
    () => Buffer.alloc(0),
  ])
  return make()
}
