import type { EmbeddingLayout } from './embedding.js'
import type { Entry } from './events.js'
import type { Notes } from './notes.js'
import type { HistoryInput } from './request.js'
import type { HistoryTokens } from './tokens.js'
import type { Vocabulary } from './vocabulary.js'

/** How a variant turns a request into tokens: all that differs between variants outside the graphs. */
export type TokenScheme = {
  readonly layout: EmbeddingLayout
  /** Per slot of a token what its number stays below. */
  readonly slotRows: readonly number[]
  /** Old K/V stays valid when events follow. */
  readonly appendIsExact: boolean
  /** A history that has events is the same tokens at any query time from its last event on. */
  readonly isTimeless: boolean
  /** Test vectors give features too, not items alone. */
  readonly samplesFeatures: boolean
  /** What events later than the query do. */
  readonly lateEvents: string
  /** Slot of a candidate's row that its own features begin at. */
  readonly candidateSlot: number
  /** @throws {RankError} INVALID_REQUEST at an action type that the model does not have */
  build(
    entries: readonly Entry[],
    input: HistoryInput,
    vocabulary: Vocabulary,
    notes: Notes,
  ): BuiltTokens
}

export type BuiltTokens = {
  readonly tokens: HistoryTokens
  /** (slots) what each candidate's row is before its features are written; zeros where absent. */
  readonly candidate?: Int32Array
}
