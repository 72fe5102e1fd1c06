import type { HistoryInput, StoredHistory } from '../model/request.js'
import { buildHistory, type History } from '../model/sequence.js'
import type { Vocabulary } from '../model/vocabulary.js'

/**
 * `buildHistory` that remembers what it made of a stored history, for as long as the store gives the same object for
 * it: most users rank more often than they get events, and a thousand events are the most of a ranking's work here.
 */
export function createHistories(
  vocabulary: Vocabulary,
  slackEvents: number,
): (input: HistoryInput) => History {
  const made = new WeakMap<StoredHistory, History>()
  return (input) => {
    const { stored } = input
    if (stored === undefined || !isStoredAlone(input, stored, vocabulary)) {
      return buildHistory(input, vocabulary, slackEvents)
    }
    const known = made.get(stored)
    if (known !== undefined) return known
    const history = buildHistory(input, vocabulary, slackEvents)
    // Without events there is nothing but the query time to go by.
    if (history.events > 0) made.set(stored, history)
    return history
  }
}

/** True where the tokens depend on nothing of the request but its stored history. */
function isStoredAlone(
  { user, histories, series, historyOffset, time }: HistoryInput,
  { events }: StoredHistory,
  { scheme }: Vocabulary,
): boolean {
  const last = events.at(-1)
  if (!scheme.isTimeless || last === undefined || last.time > time) return false
  for (const _ in series) return false
  return user.features === undefined && histories.length === 0 && historyOffset === undefined
}
