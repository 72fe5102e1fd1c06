import type { ConfigOf } from '../config.js'
import { type EmbeddingLayout, layTables } from '../embedding.js'
import { actionMask, type Entry, own } from '../events.js'
import { type Notes, noteUnknownFeatures } from '../notes.js'
import type { Features } from '../request.js'
import type { TokenScheme } from '../scheme.js'
import { type HistoryTokens, zeroTokens } from '../tokens.js'
import type { Vocabulary } from '../vocabulary.js'

/** Context tokens, then item and action token per event. */
export function paperScheme(config: ConfigOf<'paper'>): TokenScheme {
  const layout = paperLayout(config)
  return {
    layout,
    slotRows: new Array<number>(layout.slots).fill(layout.rows),
    // Positions count from the start and times are the events' own: old rows never change.
    appendIsExact: true,
    isTimeless: true,
    samplesFeatures: false,
    lateEvents: 'count as simultaneous',
    candidateSlot: 0,
    build(entries, input, vocabulary, notes) {
      const length = config.context.length + 2 * entries.length
      const tokens = zeroTokens(length, layout.slots)
      writeEvents(entries, vocabulary, tokens, notes)
      tokens.times.fill(entries[0]?.time ?? input.time, 0, config.context.length)
      writeContext(input.user.features ?? {}, vocabulary, tokens, notes)
      return { tokens }
    },
  }
}

/** Per context slot and item feature a table, and one per auxiliary series that has its own. */
function paperLayout(config: ConfigOf<'paper'>): EmbeddingLayout {
  const named = [
    ...config.context.map(({ name, rows }) => ({ name: `ctx.${name}`, rows })),
    ...config.itemFeatures.map(({ name, rows }) => ({ name: `item.${name}`, rows })),
  ]
  for (const { table, rows } of config.auxiliary) {
    if (rows !== undefined && !named.some(({ name }) => name === table))
      named.push({ name: table, rows })
  }
  return layTables(named, config.itemFeatures.length)
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
      if (!vocabulary.writeItem(item, features, rows, at * layout.slots)) notes.unknownItem(item)
      if (features !== undefined) noteUnknownFeatures(features, vocabulary, 'history', notes)
      actions[at + 1] = actionMask(entry, vocabulary, notes) | isAction
    }
    at += 2
  }
  notes.warnOfUnknownItems('history items not in the vocabulary count by their other features')
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
