/** Item ids that the model's vocabulary does not have. */
export type UnknownItems = {
  /** With repetitions. */
  readonly count: number
  /** The first few different ones. */
  readonly items: readonly string[]
}

/** Enough to see what kind of ids they are. */
const MAX_LISTED = 20

const NONE: UnknownItems = { count: 0, items: [] }

export function createUnknownItems() {
  let count = 0
  let items: Set<string> | undefined
  return {
    add(item: string): void {
      count++
      items ??= new Set()
      if (items.size < MAX_LISTED) items.add(item)
    },
    found: (): UnknownItems => (items === undefined ? NONE : { count, items: [...items] }),
  }
}
