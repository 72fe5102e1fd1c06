import type { Ranker } from '../../../falcon/types.js'

/** The request that the page edits and posts; pure. What the page does not know of it is kept. */

export type Features = { readonly [name: string]: string | number }

export type HistoryEvent = {
  readonly item: string
  /** Seconds since the epoch. */
  readonly time: number
  /** Absent = not observed. */
  readonly actions?: readonly string[]
  readonly features?: Features
}

export type Candidate = string | { readonly item: string; readonly features?: Features }

export type Draft = {
  readonly user: { readonly id: string; readonly features?: Features }
  readonly history: readonly HistoryEvent[]
  readonly candidates: readonly Candidate[]
  /** The query time. */
  readonly time: number
  readonly topK?: number
  readonly weights?: { readonly [task: string]: number }
  readonly [other: string]: unknown
}

export type Model = Ranker['model']

/** A minute: how far the query moves past an event that is added at it. */
const STEP_SEC = 60
const EXAMPLE_EVENTS = 12
const EXAMPLE_CANDIDATES = 64

/**
 * A draft from any JSON: only what the page itself reads is checked, the rest is the server's to
 * judge. A missing history is an empty one, a missing time now.
 * @throws {Error} with the JSON pointer, what was expected and what was got
 */
export function readDraft(value: unknown, nowSec: number): Draft {
  if (!isRecord(value)) throw fault('', 'a JSON object', value)
  const { user, history = [], candidates, time = nowSec } = value
  if (!isRecord(user)) throw fault('/user', 'an object {id, features?}', user)
  const { id } = user
  if (typeof id !== 'string') throw fault('/user/id', 'a string', id)
  if (!Array.isArray(history)) throw fault('/history', 'an array of events', history)
  if (!Array.isArray(candidates)) throw fault('/candidates', 'an array', candidates)
  if (typeof time !== 'number') throw fault('/time', 'a number of seconds', time)
  return {
    ...value,
    user: { ...user, id },
    history: history.map(readEvent),
    candidates: candidates.map(readCandidate),
    time,
  }
}

export function itemOf(candidate: Candidate): string {
  return typeof candidate === 'string' ? candidate : candidate.item
}

/** With one more event, behind those of its time; a query that it would not precede moves past it. */
export function addEvent(draft: Draft, event: HistoryEvent): Draft {
  const later = draft.history.findIndex(({ time }) => time > event.time)
  const at = later === -1 ? draft.history.length : later
  const time = event.time >= draft.time ? event.time + STEP_SEC : draft.time
  return { ...draft, history: draft.history.toSpliced(at, 0, event), time }
}

export function removeEvent(draft: Draft, index: number): Draft {
  return { ...draft, history: draft.history.toSpliced(index, 1) }
}

export function replaceEvent(draft: Draft, index: number, event: HistoryEvent): Draft {
  return addEvent(removeEvent(draft, index), event)
}

/** A request made of ids that the model knows, the same each time: for models without samples. */
export function exampleDraft({ actions, exampleItems }: Model, nowSec: number): Draft {
  const items = exampleItems.length > 0 ? exampleItems : ['1', '2', '3']
  const pick = (i: number) => items[(i * 7) % items.length] ?? ''
  return {
    user: { id: 'example' },
    history: Array.from({ length: Math.min(EXAMPLE_EVENTS, items.length) }, (_, i) => ({
      item: pick(i),
      time: nowSec - (EXAMPLE_EVENTS - i) * 7 * STEP_SEC,
      actions: actions.slice(0, i % 3 === 0 ? 1 : 0),
    })),
    candidates: items.slice(0, EXAMPLE_CANDIDATES),
    time: nowSec,
  }
}

function readEvent(value: unknown, i: number): HistoryEvent {
  const path = `/history/${i}`
  if (!isRecord(value)) throw fault(path, 'an object {item, time, actions?, features?}', value)
  const { item, time } = value
  if (typeof item !== 'string') throw fault(`${path}/item`, 'a string', item)
  if (typeof time !== 'number') throw fault(`${path}/time`, 'a number of seconds', time)
  const { actions } = value
  if (actions === undefined) return { ...value, item, time }
  if (!Array.isArray(actions)) throw fault(`${path}/actions`, 'an array of names', actions)
  return { ...value, item, time, actions: actions.map(String) }
}

function readCandidate(value: unknown, i: number): Candidate {
  if (typeof value === 'string') return value
  if (isRecord(value) && typeof value.item === 'string') return { ...value, item: value.item }
  throw fault(`/candidates/${i}`, 'an item id or an object {item, features?}', value)
}

function fault(path: string, expected: string, got: unknown): Error {
  const text = JSON.stringify(got) ?? 'nothing'
  const shown = text.length > 60 ? `${text.slice(0, 60)}…` : text
  return new Error(`${path === '' ? 'the request' : path} must be ${expected}, got ${shown}`)
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
