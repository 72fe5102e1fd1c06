import { parseRedisUrl, redactRedisUrl } from '../cache/redis-url.js'

/** One setting: what it is, what it may be, and how its text is read. */
export type Knob<T> = {
  readonly what: string
  readonly expected: string
  readonly fallback: T
  readonly isSwitch: boolean
  /** Undefined when the text is none of what is expected. */
  readonly read: (text: string) => T | undefined
  /** The value as a log may have it, where that is not the value itself. */
  redact?(value: T): string
}

export function text(what: string, expected: string, fallback: string): Knob<string> {
  const read = (raw: string) => (raw === '' ? undefined : raw)
  return { what, expected, fallback, isSwitch: false, read }
}

/** Where Redis is; empty = nowhere. Holds a password, which neither a log nor an error shows. */
export function redis(what: string): Knob<string> {
  return {
    what,
    expected: 'a URL such as redis://:password@host:6379/0, redis-cluster://a,b or rediss://host',
    fallback: '',
    isSwitch: false,
    read(raw) {
      if (raw !== '') parseRedisUrl(raw)
      return raw
    },
    redact: (value) => (value === '' ? value : redactRedisUrl(value)),
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
