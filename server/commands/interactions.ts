import { createReadStream, existsSync } from 'node:fs'
import { createGunzip } from 'node:zlib'
import { parse } from 'csv-parse'
import { RankError } from '../../model/errors.js'
import type { HistoryEvent } from '../../model/request.js'

/** A user's events but the last, oldest first, and the last one: what is to be retrieved. */
export type HeldOutUser = {
  readonly id: string
  readonly history: readonly HistoryEvent[]
  readonly target: HistoryEvent
}

/**
 * Users with two events or more of a CSV with the columns user, item and ts (whole seconds), gzipped where its
 * name ends in .gz. Rules (they are those of model/train/research/data.py): events go by time, then by their
 * order in the file; negative times count as 0.
 * @throws {RankError} INVALID_REQUEST naming what the file lacks
 */
export async function readInteractions(path: string): Promise<HeldOutUser[]> {
  if (!existsSync(path)) throw new RankError('INVALID_REQUEST', `there is no file ${path}`)
  const file = createReadStream(path)
  const byUser = new Map<string, HistoryEvent[]>()
  const parser = (path.endsWith('.gz') ? file.pipe(createGunzip()) : file).pipe(
    parse({ columns: true, bom: true }),
  )
  for await (const row of parser) {
    const time = Number(row.ts)
    if (row.user === undefined || row.item === undefined || !Number.isInteger(time)) {
      throw new RankError(
        'INVALID_REQUEST',
        `${path} must have columns user, item and ts (whole seconds), got ${JSON.stringify(row)}`,
      )
    }
    const events = byUser.get(row.user) ?? []
    byUser.set(row.user, events)
    events.push({ item: row.item, time: Math.max(0, time) })
  }
  return [...byUser].flatMap(([id, events]) => {
    events.sort((a, b) => a.time - b.time)
    const target = events.at(-1)
    return target === undefined || events.length < 2
      ? []
      : [{ id, history: events.slice(0, -1), target }]
  })
}
