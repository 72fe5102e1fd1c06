import { parseRedisUrl, redactRedisUrl } from '../cache/redis-url.js'

/** One setting: what it is, what it may be, and how its text is read. */
export type Knob<T> = {
  readonly what: string
  readonly expected: string
  readonly fallback: T
  readonly isSwitch: boolean
  /** The flag may be repeated; its texts are then joined by commas. */
  readonly isList?: boolean
  /** Undefined when the text is none of what is expected. @throws {RankError} saying more, and no secret */
  readonly read: (text: string) => T | undefined
  /** For values with a secret in them: what a log may show. */
  print?(value: T): string
}

export function text(what: string, expected: string, fallback: string): Knob<string> {
  const read = (raw: string) => (raw === '' ? undefined : raw)
  return { what, expected, fallback, isSwitch: false, read }
}

/** Texts between commas, each of them not empty. */
export function texts(what: string, expected: string, fallback: string): Knob<string> {
  const read = (raw: string) => (raw.split(',').includes('') ? undefined : raw)
  return { what, expected, fallback, isSwitch: false, isList: true, read }
}

/** A Redis URL, or '' for none; checked by `parseRedisUrl`, and printed without its password. */
export function redisUrl(what: string): Knob<string> {
  return {
    what,
    expected: 'a redis://, redis-sentinel:// or redis-cluster:// URL, rediss… for TLS',
    fallback: '',
    isSwitch: false,
    read(raw) {
      parseRedisUrl(raw)
      return raw
    },
    print: (url) => (url === '' ? 'none' : redactRedisUrl(url)),
  }
}

/** Origins with commas between them, or `*`. */
export function origins(what: string): Knob<readonly string[]> {
  return {
    what,
    expected: '* or origins like https://shop.example, with commas between them',
    fallback: [],
    isSwitch: false,
    read(raw) {
      const names = raw.split(',').map((name) => name.trim())
      const isFit = names.every((name) => URL.canParse(name) && new URL(name).origin === name)
      return raw === '*' || isFit ? names : undefined
    },
  }
}

export function integer(what: string, fallback: number, min: number, max: number): Knob<number> {
  return {
    what,
    expected: `an integer from ${min} to ${max}`,
    fallback,
    isSwitch: false,
    read(raw) {
      const value = /^\d{1,16}$/.test(raw) ? Number(raw) : Number.NaN
      return value >= min && value <= max ? value : undefined
    },
  }
}

export function choice<T extends string>(
  what: string,
  fallback: T,
  choices: readonly T[],
): Knob<T> {
  return {
    what,
    expected: `one of ${choices.join(', ')}`,
    fallback,
    isSwitch: false,
    read: (raw) => choices.find((one) => one === raw),
  }
}

export function toggle(what: string, fallback: boolean): Knob<boolean> {
  return {
    what,
    expected: 'true or false',
    fallback,
    isSwitch: true,
    read: (raw) => (raw === 'true' ? true : raw === 'false' ? false : undefined),
  }
}
