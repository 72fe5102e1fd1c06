import type { RankResult } from '../falcon/types.js'

/** A ranking as columns, best first: what packed answers have in place of `items`. */
export type PackedItems = {
  /** Places in the request's candidates: little-endian uint32. */
  readonly index: Uint8Array
  /** Little-endian float32, like all below. */
  readonly score: Uint8Array
  readonly tasks: { readonly [task: string]: Uint8Array }
  /** Only with explain. */
  readonly logits?: { readonly [task: string]: Uint8Array }
}

/** `withLogits` as explain asks for them. */
export function packItems(
  { items }: Pick<RankResult, 'items'>,
  tasks: readonly { readonly name: string }[],
  withLogits: boolean,
): PackedItems {
  const column = (value: (item: RankResult['items'][number]) => number) => float32(items, value)
  const index = new DataView(new ArrayBuffer(items.length * 4))
  for (const [i, item] of items.entries()) index.setUint32(i * 4, item.index, true)
  const logits = tasks.map(({ name }, t) => [name, column((item) => item.logits[t] ?? Number.NaN)])
  return {
    index: new Uint8Array(index.buffer),
    score: column(({ score }) => score),
    tasks: Object.fromEntries(
      tasks.map(({ name }) => [name, column((item) => item.tasks[name] ?? Number.NaN)]),
    ),
    ...(withLogits && { logits: Object.fromEntries(logits) }),
  }
}

/** Little-endian float32 of one value per item. */
export function float32<T>(items: readonly T[], value: (item: T) => number): Uint8Array {
  const view = new DataView(new ArrayBuffer(items.length * 4))
  for (const [i, item] of items.entries()) view.setFloat32(i * 4, value(item), true)
  return new Uint8Array(view.buffer)
}
