import { Compile } from 'typebox/compile'
import type { TLocalizedValidationError } from 'typebox/error'
import { at, type Fault, pointerStep, show } from '../model/check.js'
import {
  BatchEnvelope,
  Candidate,
  CandidateItem,
  EventsRequest,
  ExcludedId,
  HistoryEvent,
  MAX_ACTIONS,
  MAX_FEATURE_CHARS,
  MAX_ID_CHARS,
  MAX_SOURCES,
  PrefetchRequest,
  RankRequest,
  RetrieveRequest,
  SeriesEntry,
} from './schema.js'

export type { Fault }

export type Checker<T = unknown> = {
  Check(value: unknown): value is T
  Errors(value: unknown): TLocalizedValidationError[]
}

export const request = Compile(RankRequest)
export const envelope = Compile(BatchEnvelope)
export const retrieve = Compile(RetrieveRequest)
export const prefetch = Compile(PrefetchRequest)
export const events = Compile(EventsRequest)
const event = Compile(HistoryEvent)
const entry = Compile(SeriesEntry)
const excludedId = Compile(ExcludedId)
const candidate = Compile(Candidate)
const candidateItem = Compile(CandidateItem)

const MAX_NAMES_SHOWN = 5
/** More names than this no object of a request may have; `actions` no more entries either. */
const MAX_NAMES = 256
/** Objects inside objects, from a body or an event down to its features. */
const MAX_DEPTH = 2

/**
 * The first fault of a body that failed `whole`, the schema of its route. Elements are tried one by one with
 * compiled checks, then the rest with every list cut to one element: the validator's own search
 * for a fault in the last of 20,000 candidates behind 100,000 events took 2.6 s, this takes 0.1 s
 * (Node 20, one core of a 2-core virtual machine).
 */
export function bodyFault(whole: Checker, body: unknown): Fault {
  if (!isRecord(body)) return notAnObject(body)
  for (const { path, values, checker } of lists(body)) {
    const i = values.findIndex((value) => !checker.Check(value))
    if (i < 0) continue
    const fault = checker === candidate ? candidateFault(values[i]) : firstFault(checker, values[i])
    return { path: `${path}/${i}${fault.path}`, message: fault.message }
  }
  return firstFault(whole, cutLists(body))
}

/**
 * The first object with far too many names, or list of far too many actions. It comes before the
 * schema, whose check takes seconds for a million names; this only counts them.
 */
export function crowdFault(body: Record<string, unknown>): Fault | undefined {
  const crowd = crowdIn(body)
  if (crowd !== undefined) return crowd
  for (const { path, values } of lists(body)) {
    for (let i = 0; i < values.length; i++) {
      const value = values[i]
      if (ArrayBuffer.isView(value)) return bytesAt(`${path}/${i}`)
      const inner = isRecord(value) ? crowdIn(value) : undefined
      if (inner !== undefined) return { ...inner, path: `${path}/${i}${inner.path}` }
    }
  }
  return undefined
}

/** The first fault of a batch around its requests. */
export function envelopeFault(body: unknown): Fault {
  if (!isRecord(body)) return notAnObject(body)
  return crowdIn(body) ?? firstFault(envelope, body)
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return (
    typeof value === 'object' &&
    value !== null &&
    !Array.isArray(value) &&
    !ArrayBuffer.isView(value)
  )
}

function notAnObject(body: unknown): Fault {
  return { path: '', message: `body must be a JSON object, got ${got(body)}` }
}

type List = {
  readonly path: string
  readonly values: readonly unknown[]
  readonly checker: Checker
}

/** The lists of a body whose elements can be checked one by one. */
function lists(body: Record<string, unknown>): List[] {
  const { candidates, history, histories, series } = body
  const found: List[] = []
  const add = (path: string, values: unknown, checker: Checker) => {
    if (Array.isArray(values)) found.push({ path, values, checker })
  }
  add('/candidates', candidates, candidate)
  add('/exclude', body.exclude, excludedId)
  add('/history', history, event)
  add('/events', body.events, event)
  if (Array.isArray(histories)) {
    histories.forEach((values, h) => {
      add(`/histories/${h}`, values, event)
    })
  }
  if (isRecord(series)) {
    for (const [name, values] of Object.entries(series)) {
      add(`/series/${pointerStep(name)}`, values, entry)
    }
  }
  return found
}

function crowdIn(value: Record<string, unknown>, path = '', depth = 0): Fault | undefined {
  let names = 0
  // Not Object.keys: an array per event costs more than all the rest here.
  for (const _ in value) names++
  if (names > MAX_NAMES) {
    return { path, message: `must have at most ${MAX_NAMES} names, got ${names}` }
  }
  const { actions } = value
  if (Array.isArray(actions) && actions.length > MAX_NAMES) {
    const message = `must have at most ${MAX_ACTIONS} entries, got ${actions.length}`
    return { path: `${path}/actions`, message }
  }
  if (depth === MAX_DEPTH) return undefined
  for (const name in value) {
    const inner = value[name]
    if (ArrayBuffer.isView(inner)) return bytesAt(`${path}/${pointerStep(name)}`)
    if (!isRecord(inner)) continue
    const crowd = crowdIn(inner, `${path}/${pointerStep(name)}`, depth + 1)
    if (crowd !== undefined) return crowd
  }
  return undefined
}

/** MessagePack may have bytes anywhere; to a schema each of them is a name. */
function bytesAt(path: string): Fault {
  return { path, message: 'must not be binary' }
}

function cutLists(body: Record<string, unknown>): Record<string, unknown> {
  const cut = (value: unknown) => (Array.isArray(value) ? value.slice(0, 1) : value)
  const thin = { ...body }
  for (const name of ['candidates', 'exclude', 'history', 'events']) {
    if (name in thin) thin[name] = cut(thin[name])
  }
  if (Array.isArray(body.histories)) {
    thin.histories = body.histories.slice(0, MAX_SOURCES + 1).map(cut)
  }
  if (isRecord(body.series)) {
    thin.series = Object.fromEntries(Object.entries(body.series).map(([k, v]) => [k, cut(v)]))
  }
  return thin
}

/** Speaks of what was meant: an id, or an object, never of "anyOf". */
function candidateFault(value: unknown): Fault {
  if (isRecord(value)) return firstFault(candidateItem, value)
  const expected =
    typeof value === 'string'
      ? `an item id of 1 to ${MAX_ID_CHARS} characters`
      : 'an item id (string) or an object {item, features?}'
  return { path: '', message: `must be ${expected}, got ${got(value)}` }
}

function firstFault(checker: Checker, value: unknown): Fault {
  const errors = checker.Errors(value)
  // "boolean" stands beside each unknown field; the summary is lost where there are very many.
  const first = errors.find(({ keyword }) => keyword !== 'boolean')
  if (first === undefined) {
    return { path: errors[0]?.instancePath ?? '', message: 'is not allowed here' }
  }
  const path = first.instancePath
  const found = at(value, path)
  if (errors.some((error) => error.keyword === 'anyOf' && error.instancePath === path)) {
    const expected = `a string of at most ${MAX_FEATURE_CHARS} characters or a finite number`
    return { path, message: `must be ${expected}, got ${got(found)}` }
  }
  switch (first.keyword) {
    case 'additionalProperties': {
      const names = list(first.params.additionalProperties)
      return /\/(features|weights|series)$/.test(path)
        ? { path, message: `must have names of 1 to 128 characters, got ${names}` }
        : { path, message: `has unknown fields: ${names}` }
    }
    case 'required':
      return { path, message: `lacks the fields: ${list(first.params.requiredProperties)}` }
    case 'maximum':
      if (!/\btime$/.test(path)) break
      return {
        path,
        message: `must be whole seconds, at most ${first.params.limit}, got ${got(found)}: milliseconds?`,
      }
  }
  return { path, message: `${first.message}, got ${got(found)}` }
}

/** What an error message may quote of a value; never walks it, it may be deep or large. */
function got(value: unknown): string {
  if (Array.isArray(value)) return `an array of ${value.length}`
  if (typeof value === 'object' && value !== null) return 'an object'
  return typeof value === 'string' ? show(value.slice(0, 100)) : show(value)
}

function list(names: readonly string[]): string {
  const shown = names.slice(0, MAX_NAMES_SHOWN).map((name) => got(name))
  return names.length > shown.length ? `${shown.join(', ')}, … (${names.length})` : shown.join(', ')
}
