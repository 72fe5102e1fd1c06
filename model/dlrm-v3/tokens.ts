import type { ConfigOf } from '../config.js'
import { type EmbeddingLayout, layTables } from '../embedding.js'
import { actionMask, own } from '../events.js'
import { noteUnknownFeatures } from '../notes.js'
import type { TokenScheme } from '../scheme.js'
import { zeroTokens } from '../tokens.js'

/**
 * What follows a token's feature rows: rows of the position and the time table, and 0 for an event, 1 + i
 * for the token of context slot i (whose own row stands in the first slot).
 */
export function slotsOf({ itemFeatures }: Pick<ConfigOf<'dlrm-v3'>, 'itemFeatures'>) {
  const features = itemFeatures.length
  return { features, position: features, time: features + 1, kind: features + 2, all: features + 3 }
}

/**
 * A token per context slot, then one per event. Positions count from the newest event and time buckets
 * from the query, so that K/V holds for the very same history in the very same buckets: both are part of
 * a token, and of what the cache compares.
 */
export function dlrmScheme(config: ConfigOf<'dlrm-v3'>): TokenScheme {
  const { stated } = config
  const slot = slotsOf(config)
  const layout = dlrmLayout(config, slot.all)
  const contextSlots = config.context.length
  const lastTimeRow =
    (stated.timeBucketClamp === 'width-1'
      ? Math.min(stated.timeRows, stated.dModel)
      : stated.timeRows) - 1
  const position = (fromEnd: number) => Math.min(fromEnd, stated.positionRows - 1)
  const bucket = (seconds: number) => Math.min(timeBucket(seconds), lastTimeRow)
  const limits = [stated.positionRows, stated.timeRows, contextSlots + 1]
  const ofFeatures = new Array<number>(slot.features).fill(layout.rows)
  return {
    layout,
    slotRows: [...ofFeatures, ...limits],
    appendIsExact: false,
    isTimeless: false,
    samplesFeatures: true,
    lateEvents: 'count as simultaneous',
    candidateSlot: 0,
    build(entries, input, vocabulary, notes) {
      const n = entries.length
      const tokens = zeroTokens(contextSlots + n, slot.all)
      const { rows, actions, times } = tokens
      const given = input.user.features ?? {}
      vocabulary.context.forEach(({ name, offset, encode }, s) => {
        const at = s * slot.all
        const isLongEnough = n >= (stated.context[s]?.minHistory ?? 0)
        rows[at] = offset + (isLongEnough ? encode(own(given, name)) : 0)
        rows[at + slot.position] = position(s)
        rows[at + slot.time] = bucket(input.time)
        rows[at + slot.kind] = 1 + s
      })
      for (const [name, value] of Object.entries(given)) {
        if (!config.context.some((each) => each.name === name))
          notes.unknownFeature('user', name, value)
      }
      entries.forEach((entry, i) => {
        if (entry.kind === 'aux') throw new RangeError('the variant has no auxiliary series')
        const token = contextSlots + i
        const at = token * slot.all
        const { item, features } = entry.event
        if (!vocabulary.writeItem(item, features, rows, at)) notes.unknownItem(item)
        if (features !== undefined) noteUnknownFeatures(features, vocabulary, 'history', notes)
        rows[at + slot.position] = position(contextSlots + n - i)
        rows[at + slot.time] = bucket(input.time - entry.time)
        actions[token] = actionMask(entry, vocabulary, notes)
        times[token] = entry.time
      })
      notes.warnOfUnknownItems('history items not in the vocabulary count by their other features')
      const candidate = new Int32Array(slot.all)
      candidate[slot.position] = position(contextSlots)
      return { tokens, candidate }
    },
  }
}

/** A table is there once, however many features read it; its row 0 is what an unknown value gets: zeros. */
function dlrmLayout(config: ConfigOf<'dlrm-v3'>, slots: number): EmbeddingLayout {
  const tables = new Map(
    [...config.itemFeatures, ...config.context].map(({ name, table = name, rows }) => [
      table,
      rows,
    ]),
  )
  return layTables(
    [...tables].map(([name, rows]) => ({ name, rows })),
    slots,
  )
}

/** int(sqrt(max(s, 1e-6) / 60)) of whole seconds, exact. */
export function timeBucket(seconds: number): number {
  return Math.floor(Math.sqrt(Math.floor(Math.max(seconds, 0) / 60)))
}
