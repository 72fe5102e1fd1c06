import { show } from './check.js'
import { type Entry, own, STORED } from './events.js'
import { Notes, noteUnknownFeatures } from './notes.js'
import type { HistoryEvent, HistoryInput, RankInput, SeriesEntry, Warning } from './request.js'
import type { BuiltTokens } from './scheme.js'
import type { UnknownItems } from './unknown-items.js'
import type { Vocabulary } from './vocabulary.js'
import { droppedEvents, roomOf } from './window.js'

/** The user's side of a request, as tokens. */
export type History = BuiltTokens & {
  readonly events: number
  readonly truncatedEvents: number
  readonly warnings: readonly Warning[]
  readonly unknownItems: UnknownItems
}

/** The items to rank, as rows (m, slots) of the embedding table, in request order. */
export type Candidates = {
  readonly rows: Int32Array
  readonly warnings: readonly Warning[]
  readonly unknownItems: UnknownItems
}

/**
 * History tokens of a request, oldest first, as the model's variant makes them (`TokenScheme`).
 *
 * Sources are merged by time (ties: stored events, then sources in their order, then auxiliary series in the
 * manifest's order); a slowly changing series keeps the first entry of every run of equal raw
 * values; what does not fit loses its oldest events, whole, in steps of
 * `slackEvents` (see `droppedEvents`; golden cases and test vectors have none).
 *
 * @throws {RankError} INVALID_REQUEST at a kept event's action type that the model does not have
 * @see Zhai et al., "Actions Speak Louder than Words", section 2.1 (sequentialization)
 */
export function buildHistory(
  input: HistoryInput,
  vocabulary: Vocabulary,
  slackEvents = 0,
): History {
  const { config, scheme } = vocabulary
  const notes = new Notes()
  const entries = mainEntries(input)
  for (const entry of auxiliaryEntries(input, vocabulary, notes)) entries.push(entry)
  if (!isInOrder(entries)) entries.sort((a, b) => a.time - b.time)
  const room = roomOf(config)
  const older = input.stored?.older ?? 0
  const offset = (input.historyOffset ?? 0) + older
  const dropped = droppedEvents(entries.length, room, slackEvents, offset)
  const truncatedEvents = dropped + older
  if (truncatedEvents > 0) {
    const steps = slackEvents > 1 ? ` and moves ${slackEvents} at a time` : ''
    notes.add(
      'HISTORY_TRUNCATED',
      `history holds at most ${room} events${steps}; the oldest were dropped`,
      truncatedEvents,
    )
  }
  // Only what is kept is encoded: of 100,000 events, a few hundred.
  const kept = dropped === 0 ? entries : entries.slice(dropped)
  let late = 0
  while (late < kept.length && (kept[kept.length - 1 - late]?.time ?? 0) > input.time) late++
  if (late > 0) {
    const { lateEvents } = scheme
    notes.add('EVENT_AFTER_QUERY', `events later than the query time ${lateEvents}`, late)
  }
  return {
    ...scheme.build(kept, input, vocabulary, notes),
    events: kept.length,
    truncatedEvents,
    warnings: notes.list(),
    unknownItems: notes.unknownItems(),
  }
}

/** The items to rank, to be scored against `history`. */
export function buildCandidates(
  input: RankInput,
  vocabulary: Vocabulary,
  { candidate }: Pick<History, 'candidate'>,
): Candidates {
  const { layout, scheme } = vocabulary
  const { slots } = layout
  const notes = new Notes()
  const rows = new Int32Array(input.candidates.length * slots)
  const ids = vocabulary.idRows?.(input.candidates.map(({ item }) => item))
  input.candidates.forEach(({ item, features }, i) => {
    const at = i * slots
    if (candidate !== undefined) rows.set(candidate, at)
    if (!vocabulary.writeItem(item, features, rows, at + scheme.candidateSlot, ids?.[i]))
      notes.unknownItem(item)
    if (features !== undefined) noteUnknownFeatures(features, vocabulary, 'candidates', notes)
  })
  notes.warnOfUnknownItems('candidates not in the vocabulary are scored by their other features')
  return { rows, warnings: notes.list(), unknownItems: notes.unknownItems() }
}

function mainEntries({ stored, histories }: HistoryInput): Entry[] {
  const entries: Entry[] = []
  const add = (events: readonly HistoryEvent[], h: number) => {
    for (let e = 0; e < events.length; e++) {
      const event = events[e]
      if (event !== undefined) entries.push({ kind: 'main', time: event.time, event, h, e })
    }
  }
  if (stored !== undefined) add(stored.events, STORED)
  for (const [h, history] of histories.entries()) add(history, h)
  return entries
}

function isInOrder(entries: readonly Entry[]): boolean {
  let last = Number.NEGATIVE_INFINITY
  for (const { time } of entries) {
    if (time < last) return false
    last = time
  }
  return true
}

function auxiliaryEntries(input: HistoryInput, vocabulary: Vocabulary, notes: Notes): Entry[] {
  for (const name of Object.keys(input.series)) {
    if (!vocabulary.auxiliary.some((series) => series.name === name)) {
      notes.add(
        'UNKNOWN_SERIES',
        `series ${show(name)} was dropped: the model has no such slowly changing series`,
        1,
      )
    }
  }
  return vocabulary.auxiliary.flatMap(({ name }, series) =>
    firstOfEachRun(own(input.series, name) ?? []).map(
      ({ value, time }): Entry => ({ kind: 'aux', time, series, value }),
    ),
  )
}

/** Time-ordered entries without those that repeat the raw value before them. */
export function firstOfEachRun(entries: readonly SeriesEntry[]): SeriesEntry[] {
  const sorted = entries.toSorted((a, b) => a.time - b.time)
  return sorted.filter(({ value }, i) => i === 0 || value !== sorted[i - 1]?.value)
}
