/** Numbers as people read them; pure, and the same in every locale. */

/** Three digits of a number, without an exponent: 1234.5 is 1,235, 0.00224 keeps its digits. */
export function digits(value: number, count = 3): string {
  if (!Number.isFinite(value)) return '–'
  if (Number.isInteger(value)) return grouped(String(value))
  const magnitude = Math.floor(Math.log10(Math.abs(value)))
  const decimals = Math.min(12, Math.max(0, count - 1 - magnitude))
  return grouped(value.toFixed(decimals))
}

/** A duration given in milliseconds. */
export function duration(ms: number): string {
  if (!Number.isFinite(ms)) return '–'
  if (ms < 0.001) return '0 ms'
  if (ms < 1) return `${digits(ms * 1000)} µs`
  if (ms < 1000) return `${digits(ms)} ms`
  return ms < 60_000 ? `${digits(ms / 1000)} s` : span(ms / 1000)
}

/** A share from 0 to 1 as a percentage. */
export function percent(share: number): string {
  return `${digits(share * 100)} %`
}

const BYTES = ['B', 'KiB', 'MiB', 'GiB', 'TiB']

export function bytes(count: number): string {
  if (!Number.isFinite(count)) return '–'
  let value = count
  let unit = 0
  while (value >= 1024 && unit < BYTES.length - 1) {
    value /= 1024
    unit++
  }
  return `${digits(value)} ${BYTES[unit]}`
}

/** A count with its noun: `1 event`, `7,583 events`. */
export function count(n: number, noun: string): string {
  return `${grouped(String(n))} ${noun}${n === 1 ? '' : 's'}`
}

/** The length of a film, given in milliseconds: `1:07`. */
export function clock(ms: number): string {
  const seconds = Math.round(ms / 1000)
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`
}

/** A long time in its largest unit, given in seconds: `45 s`, `3 h`, `12 d`. */
export function span(seconds: number): string {
  const s = Math.abs(seconds)
  if (s < 60) return `${Math.round(s)} s`
  if (s < 3600) return `${Math.round(s / 60)} min`
  if (s < 86_400) return `${Math.round(s / 3600)} h`
  return `${Math.round(s / 86_400)} d`
}

/** When something was, seen from the query time; both in seconds. */
export function relative(time: number, queryTime: number): string {
  if (time === queryTime) return 'at the query'
  return time < queryTime ? `${span(queryTime - time)} before` : `${span(time - queryTime)} after`
}

/** Seconds since the epoch as `2022-05-05 10:51:39`, UTC; what is no time stays as it is. */
export function utc(seconds: number): string {
  return isoOf(seconds)?.replace('T', ' ') ?? String(seconds)
}

/** The value of an input of type datetime-local, read as UTC; empty for what is no time. */
export function toField(seconds: number): string {
  return isoOf(seconds) ?? ''
}

/** Seconds of such a value; undefined when it is empty or incomplete. */
export function fromField(value: string): number | undefined {
  const ms = Date.parse(`${value}Z`)
  return Number.isNaN(ms) ? undefined : Math.floor(ms / 1000)
}

function isoOf(seconds: number): string | undefined {
  const date = new Date(seconds * 1000)
  return Number.isNaN(date.getTime()) ? undefined : date.toISOString().slice(0, 19)
}

function grouped(text: string): string {
  const [whole = '', fraction] = text.split('.')
  const groups = whole.replace(/\B(?=(\d{3})+$)/g, ',')
  return fraction === undefined ? groups : `${groups}.${fraction}`
}
