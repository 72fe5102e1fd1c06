import type { UserHash } from '../cache/key.js'
import type { HistoryInput, StoredHistory } from '../model/request.js'
import type { History } from '../model/sequence.js'
import { timed } from '../model/step.js'
import type { Vocabulary } from '../model/vocabulary.js'
import type { Deadline } from './deadline.js'
import { createHistories } from './histories.js'
import type { RankOptions } from './types.js'
import type { ReadHistory, Users } from './users.js'

export type SequenceOptions = {
  readonly users: Pick<Users, 'read'>
  readonly vocabulary: Vocabulary
  readonly slackEvents: number
  /** A stored history came to so many tokens. */
  readonly onStored: (tokens: number) => void
  /** Milliseconds, monotonic. */
  readonly now: () => number
}

export type Sequenced = {
  readonly history: History
  /** What was read of the stored history; absent where it was not asked for. */
  readonly stored?: StoredHistory
  /** When it was read. */
  readonly startMs: number
}

export type Sequence = (
  input: HistoryInput,
  user: UserHash,
  options: Pick<RankOptions, 'useStored' | 'onStep'>,
  deadline: Pick<Deadline, 'within'> & { readonly signal: AbortSignal | undefined },
) => Promise<Sequenced>

const eventsRead = ({ stored }: ReadHistory) => ({ events: stored.events.length })

/** Reads the stored history, where it is asked for, and makes all histories tokens. */
export function createSequence(options: SequenceOptions): Sequence {
  const { users, vocabulary, slackEvents, onStored, now } = options
  const historyOf = createHistories(vocabulary, slackEvents)
  return async (input, user, { useStored = false, onStep }, { signal, within }) => {
    const reading = () => users.read(user, signal)
    const read = useStored
      ? await within(timed(onStep, 'history.read', reading, eventsRead))
      : undefined
    const startMs = now()
    if (read === undefined) {
      return { history: historyOf(input), startMs }
    }
    const { stored } = read
    const history = historyOf({ ...input, stored })
    onStored(history.tokens.length)
    const warnings = [...read.warnings, ...history.warnings]
    return { stored, startMs, history: { ...history, warnings } }
  }
}
