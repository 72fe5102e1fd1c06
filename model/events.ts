import { show } from './check.js'
import { RankError } from './errors.js'
import type { Notes } from './notes.js'
import type { FeatureValue, HistoryEvent } from './request.js'
import type { Vocabulary } from './vocabulary.js'

/** An event of any source, before it is known whether it is kept. */
export type Entry =
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

/** Source of what the service itself keeps. */
export const STORED = -1

/** Bits of the named action types; those of `unobservedAction` when none are given. */
export function actionMask(
  { event, h, e }: Entry & { readonly kind: 'main' },
  { config, actionBits, unobservedMask }: Vocabulary,
  notes: Notes,
): number {
  const { actions } = event
  if (actions === undefined) return unobservedMask
  let mask = 0
  for (let a = 0; a < actions.length; a++) {
    const name = actions[a] ?? ''
    const bit = actionBits.get(name)
    if (bit !== undefined) mask |= 1 << bit
    // Stored under another version of the model: nobody's fault, least of all this request's.
    else if (h === STORED) {
      notes.add('UNKNOWN_ACTION', `stored events: the model has no action ${show(name)}`, 1)
    } else throw unknownAction(name, config.actions, `/histories/${h}/${e}/actions/${a}`)
  }
  return mask
}

export function unknownAction(name: string, actions: readonly string[], path: string): RankError {
  const expected =
    actions.length > 0 ? `one of ${actions.join(', ')}` : 'none, the model has no actions'
  const message = `unknown action ${show(name)}: expected ${expected}`
  return new RankError('INVALID_REQUEST', message, { path })
}

/** A client's key may be `constructor`: only its own properties count. */
export function own<T>(record: { readonly [name: string]: T }, name: string): T | undefined {
  return Object.hasOwn(record, name) ? record[name] : undefined
}
