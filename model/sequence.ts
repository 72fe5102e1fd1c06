import { show } from './check.js'
import { RankError } from './errors.js'
import type {
  Features,
  FeatureValue,
  HistoryEvent,
  HistoryInput,
  RankInput,
  SeriesEntry,
  Warning,
} from './request.js'
import type { HistoryTokens } from './tokens.js'
import type { Vocabulary } from './vocabulary.js'
import { droppedEvents, roomOf } from './window.js'

/** The user's side of a request, as tokens. */
export type History = {
  readonly tokens: HistoryTokens
  readonly events: number
  readonly truncatedEvents: number
  readonly warnings: readonly Warning[]
}

/** An event of any source, before it is known whether it is kept. */
type Entry =
  | {
      readonly kind: 'main'
      readonly time: number
      readonly event: HistoryEvent
      /** Where it stands in the request; `h` is STORED for what does not. */
      readonly h: number
      readonly e: number
    }
  | {
      readonly kind: 'aux'
      readonly time: number
      readonly series: number
      readonly value: FeatureValue
    }

const STORED = -1

/**
 * History tokens of a request: context tokens, then item and action token per event, oldest first.
 *
 * Sources are merged by time (ties: stored events, then sources in their order, then auxiliary series in the
 * manifest's order); a slowly changing series keeps the first entry of every run of equal raw
 * values; what does not fit C + 2E <= maxTokens loses its oldest events, whole, in steps of
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
  const { config, layout } = vocabulary
  const notes = new Notes()
  const entries = mainEntries(input)
  for (const entry of auxiliaryEntries(input, vocabulary, notes)) entries.push(entry)
  entries.sort((a, b) => a.time - b.time)
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
  const kept = entries.slice(dropped)
  const length = config.context.length + 2 * kept.length
  const tokens: HistoryTokens = {
    rows: new Int32Array(length * layout.slots),
    actions: new Int32Array(length),
    times: new Float64Array(length),
    length,
  }
  writeEvents(kept, vocabulary, tokens, notes)
  const late = kept.filter(({ time }) => time > input.time).length
  if (late > 0)
    notes.add('EVENT_AFTER_QUERY', 'events later than the query time count as simultaneous', late)
  tokens.times.fill(kept[0]?.time ?? input.time, 0, config.context.length)
  writeContext(input.user.features ?? {}, vocabulary, tokens, notes)
  return {
    tokens,
    events: kept.length,
    truncatedEvents,
    warnings: notes.list(),
  }
}

/** Candidates as rows (m, slots) of the embedding table, in request order. */
export function buildCandidates(
  input: RankInput,
  vocabulary: Vocabulary,
): { readonly rows: Int32Array; readonly warnings: readonly Warning[] } {
  const { slots } = vocabulary.layout
  const notes = new Notes()
  const rows = new Int32Array(input.candidates.length * slots)
  let unknown = 0
  input.candidates.forEach(({ item, features }, i) => {
    if (!vocabulary.writeItem(item, features, rows, i * slots)) unknown++
    if (features !== undefined) noteUnknownFeatures(features, vocabulary, 'candidates', notes)
  })
  if (unknown > 0) {
    notes.add(
      'UNKNOWN_ITEM',
      'candidates not in the vocabulary are scored by their other features',
      unknown,
    )
  }
  return { rows, warnings: notes.list() }
}

function mainEntries({ stored, histories }: HistoryInput): Entry[] {
  const entries: Entry[] = []
  stored?.events.forEach((event, e) => {
    entries.push({ kind: 'main', time: event.time, event, h: STORED, e })
  })
  histories.forEach((history, h) => {
    history.forEach((event, e) => {
      entries.push({ kind: 'main', time: event.time, event, h, e })
    })
  })
  return entries
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

/** Item and action token of each event, straight into `tokens`: a request has thousands of them. */
function writeEvents(
  entries: readonly Entry[],
  vocabulary: Vocabulary,
  { rows, actions, times }: HistoryTokens,
  notes: Notes,
): void {
  const { config, layout } = vocabulary
  const isAction = 1 << config.actions.length
  let unknown = 0
  let at = config.context.length
  for (const entry of entries) {
    const { time } = entry
    times[at] = time
    times[at + 1] = time
    if (entry.kind === 'aux') {
      const series = vocabulary.auxiliary[entry.series]
      if (series === undefined) throw new RangeError(`no series ${entry.series}`)
      rows[at * layout.slots] = series.offset + series.encode(entry.value)
      actions[at + 1] = (1 << series.actionBit) | isAction
    } else {
      const { item, features } = entry.event
      if (!vocabulary.writeItem(item, features, rows, at * layout.slots)) unknown++
      if (features !== undefined) noteUnknownFeatures(features, vocabulary, 'history', notes)
      actions[at + 1] = actionMask(entry, vocabulary, notes) | isAction
    }
    at += 2
  }
  if (unknown > 0) {
    notes.add(
      'UNKNOWN_ITEM',
      'history items not in the vocabulary count by their other features',
      unknown,
    )
  }
}

function writeContext(
  features: Features,
  { config, context, layout }: Vocabulary,
  { rows }: HistoryTokens,
  notes: Notes,
): void {
  context.forEach(({ name, offset, encode }, i) => {
    rows[i * layout.slots] = offset + encode(own(features, name))
  })
  for (const name of Object.keys(features)) {
    if (!config.context.some((slot) => slot.name === name))
      notes.unknownFeature('user', name, features[name])
  }
}

/** Bits of the named action types; those of `unobservedAction` when none are given. */
function actionMask(
  { event, h, e }: Entry & { readonly kind: 'main' },
  { config, actionBits }: Vocabulary,
  notes: Notes,
): number {
  const unobserved = config.unobservedAction === undefined ? [] : [config.unobservedAction]
  let mask = 0
  const names = event.actions ?? unobserved
  names.forEach((name, a) => {
    const bit = actionBits.get(name)
    if (bit !== undefined) mask |= 1 << bit
    // Stored under another version of the model: nobody's fault, least of all this request's.
    else if (h === STORED) {
      notes.add('UNKNOWN_ACTION', `stored events: the model has no action ${show(name)}`, 1)
    } else throw unknownAction(name, config.actions, `/histories/${h}/${e}/actions/${a}`)
  })
  return mask
}

export function unknownAction(name: string, actions: readonly string[], path: string): RankError {
  const message = `unknown action ${show(name)}: expected one of ${actions.join(', ')}`
  return new RankError('INVALID_REQUEST', message, { path })
}

/** Time-ordered entries without those that repeat the raw value before them. */
export function firstOfEachRun(entries: readonly SeriesEntry[]): SeriesEntry[] {
  const sorted = entries.toSorted((a, b) => a.time - b.time)
  return sorted.filter(({ value }, i) => i === 0 || value !== sorted[i - 1]?.value)
}

function noteUnknownFeatures(
  features: Features,
  vocabulary: Vocabulary,
  where: string,
  notes: Notes,
): void {
  for (const name of Object.keys(features)) {
    if (!vocabulary.hasItemFeature(name)) notes.unknownFeature(where, name, features[name])
  }
}

/** A client's key may be `constructor`: only its own properties count. */
function own<T>(record: { readonly [name: string]: T }, name: string): T | undefined {
  return Object.hasOwn(record, name) ? record[name] : undefined
}

/** A request may misname a thousand features; the first few say it. */
const MAX_WARNINGS = 20

/** Warnings of one request, merged by text. */
class Notes {
  readonly #counts = new Map<string, Warning>()

  add(code: Warning['code'], message: string, count: number): void {
    const key = `${code} ${message}`
    this.#counts.set(key, { code, message, count: count + (this.#counts.get(key)?.count ?? 0) })
  }

  unknownFeature(where: string, name: string, value: unknown): void {
    if (typeof value === 'number') {
      this.add(
        'DENSE_FEATURE_DROPPED',
        `${where}: dense feature ${show(name)} was dropped: HSTU replaces counters and ratios by the history they are computed from; only categorical features of the manifest enter`,
        1,
      )
    } else {
      this.add(
        'UNKNOWN_FEATURE',
        `${where}: feature ${show(name)} is not in the model's manifest`,
        1,
      )
    }
  }

  list(): Warning[] {
    return [...this.#counts.values()].slice(0, MAX_WARNINGS)
  }
}
