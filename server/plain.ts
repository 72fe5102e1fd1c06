import { isRecord } from './fault.js'
import { MAX_ACTIONS, MAX_ID_CHARS, MAX_TIME_SEC } from './schema.js'

/** Item, time and actions: what an event without features has. */
const PLAIN_NAMES = 3
/** A body has fewer fields than this: what has more is not copied. */
const MAX_FIELDS = 64

const LISTS: readonly (readonly [name: string, arePlain: typeof areIds])[] = [
  ['candidates', areIds],
  ['exclude', areIds],
  ['history', arePlainEvents],
  ['events', arePlainEvents],
]

/**
 * A body of the same faults whose long lists are cut to their first element, where all elements are faultless and of the
 * common kind: ids, events without features. The schema takes three times as long for one.
 */
export function withoutPlain(body: Record<string, unknown>): Record<string, unknown> {
  let fields = 0
  for (const _ in body) if (++fields > MAX_FIELDS) return body
  const rest = { ...body }
  for (const [name, arePlain] of LISTS) {
    const values = body[name]
    if (Array.isArray(values) && arePlain(values)) rest[name] = values.slice(0, 1)
  }
  return rest
}

function areIds(values: readonly unknown[]): boolean {
  for (const value of values) if (!isId(value)) return false
  return true
}

function arePlainEvents(values: readonly unknown[]): boolean {
  for (const value of values) if (!isPlainEvent(value)) return false
  return true
}

function isId(value: unknown): boolean {
  return typeof value === 'string' && value !== '' && value.length <= MAX_ID_CHARS
}

function isPlainEvent(value: unknown): boolean {
  if (!isRecord(value)) return false
  let names = 0
  for (const _ in value) if (++names > PLAIN_NAMES) return false
  const { item, time, actions } = value
  if (!isId(item) || !isTime(time)) return false
  if (actions === undefined) return names === PLAIN_NAMES - 1
  const isList = names === PLAIN_NAMES && Array.isArray(actions)
  return isList && actions.length <= MAX_ACTIONS && areIds(actions)
}

function isTime(value: unknown): boolean {
  return Number.isInteger(value) && Number(value) >= 0 && Number(value) <= MAX_TIME_SEC
}
