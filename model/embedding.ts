/** One weight table inside the bundle's single embedding table. */
export type EmbeddingTable = {
  /** `ctx.<slot>`, `item.<feature>`, `aux.<series>`; or another that its variant's weights have. */
  readonly name: string
  readonly rows: number
  /** Row of the whole table where this one's row 0 (unknown) lies. */
  readonly offset: number
}

export type EmbeddingLayout = {
  readonly tables: readonly EmbeddingTable[]
  /** Rows of the whole table, the zero row included. */
  readonly rows: number
  /** Numbers of one token: rows of tables and, in some variants, what else it needs. */
  readonly slots: number
}

/**
 * Tables in one: a zero row, then table after table. One table means one gather per run whatever the
 * number of features, and unused slots of a token (a context token fills one) point at the zero row.
 */
export function layTables(
  named: readonly { readonly name: string; readonly rows: number }[],
  slots: number,
): EmbeddingLayout {
  let offset = 1
  const tables = named.map((table) => {
    const placed = { ...table, offset }
    offset += table.rows
    return placed
  })
  return { tables, rows: offset, slots }
}
