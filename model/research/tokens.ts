import type { ConfigOf } from '../config.js'
import { layTables } from '../embedding.js'
import { actionMask, type Entry } from '../events.js'
import { type Notes, noteUnknownFeatures } from '../notes.js'
import type { TokenScheme } from '../scheme.js'
import { type HistoryTokens, sliceTokens, zeroTokens } from '../tokens.js'
import type { Vocabulary } from '../vocabulary.js'

/** What the numbers of a token are. A candidate's row has the user's last event in the first three. */
export const SLOT = { item: 0, position: 1, secondsToNext: 2, candidate: 3 } as const
export const SLOTS = 4

/** 68 years; more differ by less than one time bucket. */
const MOST_SECONDS = 2 ** 31 - 1

/**
 * One token per event. A row compares times with the moment of the event after it, and the last row with the
 * query time: so that one is not part of the history, whose K/V then holds for every later request, but
 * travels with the candidates and is computed anew each time.
 */
export function researchScheme(config: ConfigOf<'research'>): TokenScheme {
  const [item] = config.itemFeatures
  const items = { name: `item.${item?.name}`, rows: item?.rows ?? 1 }
  const layout = layTables([items, { name: 'position', rows: config.positions }], SLOTS)
  const [itemTable, positionTable] = layout.tables
  return {
    layout,
    slotRows: [layout.rows, layout.rows, MOST_SECONDS, layout.rows],
    appendIsExact: true,
    isTimeless: false,
    samplesFeatures: false,
    lateEvents: 'count as that much earlier',
    candidateSlot: SLOT.candidate,
    build(entries, input, vocabulary, notes) {
      const tokens = zeroTokens(entries.length, SLOTS)
      writeItems(entries, vocabulary, tokens, notes)
      entries.forEach(({ time }, i) => {
        const at = i * SLOTS
        // Padding has neither an item nor a position.
        if (tokens.rows[at] !== itemTable?.offset)
          tokens.rows[at + SLOT.position] = (positionTable?.offset ?? 0) + i
        const next = entries[i + 1]?.time ?? input.time
        tokens.rows[at + SLOT.secondsToNext] = clampSeconds(next - time)
        tokens.times[i] = time
      })
      for (const [name, value] of Object.entries(input.user.features ?? {})) {
        notes.unknownFeature('user', name, value)
      }
      // Who has no events is one padding event at the query time: zeros.
      const last = Math.max(0, entries.length - 1)
      const candidate = new Int32Array(SLOTS)
      candidate.set(tokens.rows.subarray(last * SLOTS))
      return { tokens: sliceTokens(tokens, 0, last), candidate }
    },
  }
}

function writeItems(
  entries: readonly Entry[],
  vocabulary: Vocabulary,
  { rows }: HistoryTokens,
  notes: Notes,
): void {
  entries.forEach((entry, i) => {
    if (entry.kind === 'aux') throw new RangeError('the variant has no auxiliary series')
    const { item, features } = entry.event
    if (!vocabulary.writeItem(item, features, rows, i * SLOTS)) notes.unknownItem(item)
    if (features !== undefined) noteUnknownFeatures(features, vocabulary, 'history', notes)
    // The model has none: refuses those that the request names.
    actionMask(entry, vocabulary, notes)
  })
  notes.warnOfUnknownItems('history items not in the vocabulary count as padding')
}

function clampSeconds(seconds: number): number {
  return Math.max(-MOST_SECONDS, Math.min(seconds, MOST_SECONDS))
}
