import { show } from './check.js'
import type { Features, Warning } from './request.js'
import { createUnknownItems, type UnknownItems } from './unknown-items.js'
import type { Vocabulary } from './vocabulary.js'

/** A request may misname a thousand features; the first few say it. */
const MAX_WARNINGS = 20

/** Warnings of one request, merged by text. */
export class Notes {
  readonly #counts = new Map<string, Warning>()
  readonly #unknown = createUnknownItems()

  add(code: Warning['code'], message: string, count: number): void {
    const key = `${code} ${message}`
    this.#counts.set(key, { code, message, count: count + (this.#counts.get(key)?.count ?? 0) })
  }

  unknownItem(item: string): void {
    this.#unknown.add(item)
  }

  /** Warns, where there were unknown items, of what became of them. */
  warnOfUnknownItems(message: string): void {
    const { count } = this.#unknown.found()
    if (count > 0) this.add('UNKNOWN_ITEM', message, count)
  }

  unknownItems(): UnknownItems {
    return this.#unknown.found()
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

export function noteUnknownFeatures(
  features: Features,
  vocabulary: Vocabulary,
  where: string,
  notes: Notes,
): void {
  for (const name of Object.keys(features)) {
    if (!vocabulary.hasItemFeature(name)) notes.unknownFeature(where, name, features[name])
  }
}
