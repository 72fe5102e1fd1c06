import type { Retrieved } from '../model/engine/engine.js'

/** An item of the candidate list, and how close it is to the user. */
export type Scored = { readonly place: number; readonly score: number }

/**
 * The `k` best of two lists that are sorted best first; at equal scores those of `first` come first, whose
 * places lie before the others. Excluded items, which score -infinity, stay out.
 */
export function mergeBest(first: readonly Scored[], second: Retrieved, k: number): Scored[] {
  const merged: Scored[] = []
  let i = 0
  let j = 0
  while (merged.length < k) {
    const a = first[i]
    const score = second.scores[j] ?? Number.NEGATIVE_INFINITY
    if (a !== undefined && a.score >= score) {
      merged.push(a)
      i++
    } else if (score > Number.NEGATIVE_INFINITY) {
      merged.push({ place: Number(second.places[j]), score })
      j++
    } else break
  }
  return merged
}
