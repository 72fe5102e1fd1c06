import type { SampleUser } from './api.js'
import type { HistoryEvent } from './draft.js'
import { clock } from './format.js'

/** What the page says about events and items; pure. */

export type Kind = {
  /** An action's name, or what stands for none. */
  readonly name: string
  /** Class of its colour. */
  readonly colour: string
}

/** Colours 1 to 5 are for actions, tasks and stages in their order; the sixth is grey. */
const COLOURS = 5
const NOTHING: Kind = { name: 'no action', colour: 'k6' }
const UNOBSERVED: Kind = { name: 'not observed', colour: 'k6' }

export function colourOf(index: number): string {
  return index < 0 ? NOTHING.colour : `k${(index % COLOURS) + 1}`
}

/**
 * What each event counts as in a picture with one colour per event: its rarest action in this
 * history, because what somebody does always says least.
 */
export function kindsOf(history: readonly HistoryEvent[], actions: readonly string[]): Kind[] {
  const counts = new Map<string, number>()
  for (const event of history) {
    for (const name of event.actions ?? []) counts.set(name, (counts.get(name) ?? 0) + 1)
  }
  return history.map((event) => {
    if (event.actions === undefined) return UNOBSERVED
    const [rarest] = event.actions.toSorted((a, b) => (counts.get(a) ?? 0) - (counts.get(b) ?? 0))
    return rarest === undefined
      ? NOTHING
      : { name: rarest, colour: colourOf(actions.indexOf(rarest)) }
  })
}

/** The different kinds, the most frequent first. */
export function legendOf(kinds: readonly Kind[]): (Kind & { readonly count: number })[] {
  const found = new Map<string, Kind & { count: number }>()
  for (const kind of kinds) {
    const entry = found.get(kind.name) ?? { ...kind, count: 0 }
    entry.count++
    found.set(kind.name, entry)
  }
  return [...found.values()].sort((a, b) => b.count - a.count)
}

/** Catalogue features of an item in a few words; empty for one that the sample does not describe. */
export function aboutItem(item: string, catalogue: SampleUser['catalogue'] | undefined): string {
  const values = Object.hasOwn(catalogue?.items ?? {}, item) ? catalogue?.items[item] : undefined
  if (values === undefined) return ''
  return (catalogue?.features ?? [])
    .flatMap((name, i) => {
      const value = values[i]
      if (value === null || value === undefined) return []
      // Durations are milliseconds in the demo's catalogue.
      const isTime = name === 'duration' && typeof value === 'number'
      return [isTime ? clock(value) : `${name} ${value}`]
    })
    .join(' · ')
}
