import { createShares } from './shares.js'

export const PRIORITIES = ['high', 'normal', 'low'] as const
export type Priority = (typeof PRIORITIES)[number]

/** Whose work waits, how urgent it is and what it should cost. */
export type Claim = {
  readonly key: string
  /** Weight against the other keys of the same priority, above 0. */
  readonly share: number
  readonly priority: Priority
  /** Predicted milliseconds. */
  readonly workMs: number
}

export type FairQueue<T extends Claim> = {
  push(item: T): void
  /** Takes the item whose turn it is. */
  shift(): T | undefined
  /** False when it does not wait any more. */
  remove(item: T): boolean
  /** Work that comes before a new item, if nobody else arrives, in milliseconds. */
  aheadMs(claim: Claim): number
  length(): number
  of(priority: Priority): { readonly length: number; readonly workMs: number }
}

/**
 * Shares of the compute while all priorities wait. Weights and not a strict order, so that the low
 * ones are late but never stand still.
 */
export const WEIGHTS: Readonly<Record<Priority, number>> = { high: 16, normal: 4, low: 1 }

/**
 * Fair queueing by predicted work, twice: priorities share the compute, and within each its keys do.
 * Whoever asks for less than its share waits for nobody's backlog; who floods waits behind its own.
 * Within a key first come, first served.
 */
export function createFairQueue<T extends Claim>(): FairQueue<T> {
  const priorities = createShares<Priority>()
  const newClass = () => ({ keys: createShares<string>(), items: new Map<string, T[]>() })
  const classes = { high: newClass(), normal: newClass(), low: newClass() }
  let length = 0

  /** The item of this priority whose turn it is. */
  const headOf = (priority: Priority): T | undefined => {
    const { keys, items } = classes[priority]
    const key = keys.next((name) => items.get(name)?.[0]?.workMs ?? 0)
    return key === undefined ? undefined : items.get(key)?.[0]
  }
  const take = ({ priority, key }: T, place: number): void => {
    const { items } = classes[priority]
    const own = items.get(key)
    own?.splice(place, 1)
    if (own?.length === 0) items.delete(key)
    length--
  }

  return {
    push(item) {
      const { priority, key, share, workMs } = item
      const { keys, items } = classes[priority]
      const own = items.get(key)
      if (own === undefined) items.set(key, [item])
      else own.push(item)
      keys.arrive(key, share, workMs)
      priorities.arrive(priority, WEIGHTS[priority], workMs)
      length++
    },
    shift() {
      const priority = priorities.next((name) => headOf(name)?.workMs ?? 0)
      const item = priority && headOf(priority)
      if (item === undefined) return undefined
      take(item, 0)
      classes[item.priority].keys.serve(item.key, item.workMs)
      priorities.serve(item.priority, item.workMs)
      return item
    },
    remove(item) {
      const { priority, key, workMs } = item
      const { keys, items } = classes[priority]
      const place = items.get(key)?.indexOf(item) ?? -1
      if (place === -1) return false
      take(item, place)
      keys.leave(key, workMs)
      priorities.leave(priority, workMs)
      return true
    },
    aheadMs({ priority, key, share, workMs }) {
      const { keys } = classes[priority]
      const inClass = keys.aheadMs(key, share, workMs, keys.workMs(key))
      return priorities.aheadMs(priority, WEIGHTS[priority], workMs, inClass)
    },
    length: () => length,
    of: (priority) => ({
      length: priorities.waiting(priority),
      workMs: priorities.workMs(priority),
    }),
  }
}
