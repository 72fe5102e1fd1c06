/** Item ids that the model's vocabulary does not have. */
export type UnknownItems = {
  /** With repetitions. */
  readonly count: number
  /** The first few different ones. */
  readonly items: readonly string[]
}

/** Enough to see what kind of ids they are. */
const MAX_LISTED = 20

export function createUnknownItems() {
  let count = 0
  const items = new Set<string>()
  return {
    add(item: string): void {
      count++
      if (items.size < MAX_LISTED) items.add(item)
    },
    found: (): UnknownItems => ({ count, items: [...items] }),
  }
}
