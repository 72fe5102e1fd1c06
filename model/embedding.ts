import type { HstuConfig } from './config.js'

/** One weight table inside the bundle's single embedding table. */
export type EmbeddingTable = {
  /** Weight name without `.weight`: `ctx.<slot>`, `item.<feature>`, `aux.<series>`. */
  readonly name: string
  readonly rows: number
  /** Row of the whole table where this one's row 0 (unknown) lies. */
  readonly offset: number
}

export type EmbeddingLayout = {
  readonly tables: readonly EmbeddingTable[]
  /** Rows of the whole table, the zero row included. */
  readonly rows: number
  /** Rows that one token may sum: one per item feature. */
  readonly slots: number
}

/**
 * How context, item and auxiliary tables lie in one table: a zero row, then table after table.
 * One table means one gather per run whatever the number of features, and unused slots of a
 * token (a context token fills one) point at the zero row.
 */
export function embeddingLayout(config: HstuConfig): EmbeddingLayout {
  const named = [
    ...config.context.map(({ name, rows }) => ({ name: `ctx.${name}`, rows })),
    ...config.itemFeatures.map(({ name, rows }) => ({ name: `item.${name}`, rows })),
  ]
  for (const { table, rows } of config.auxiliary) {
    if (rows !== undefined && !named.some(({ name }) => name === table))
      named.push({ name: table, rows })
  }
  let offset = 1
  const tables = named.map((table) => {
    const placed = { ...table, offset }
    offset += table.rows
    return placed
  })
  return { tables, rows: offset, slots: config.itemFeatures.length }
}
