import { createReadStream, existsSync } from 'node:fs'
import { pipeline } from 'node:stream'
import { createGunzip } from 'node:zlib'
import { parse } from 'csv-parse'
import { RankError } from '../../model/errors.js'
import type { HistoryEvent } from '../../model/request.js'

const WHOLE = /^\s*[+-]?\d+\s*$/

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
 * @throws {RankError} INVALID_REQUEST naming what the file lacks, or its first wrong row
 */
export async function readInteractions(path: string): Promise<HeldOutUser[]> {
  if (!existsSync(path)) throw new RankError('INVALID_REQUEST', `there is no file ${path}`)
  const byUser = new Map<string, HistoryEvent[]>()
  const parser = parse({ columns: true, bom: true })
  const file = createReadStream(path)
  const parts = path.endsWith('.gz') ? [file, createGunzip(), parser] : [file, parser]
  // A fault of any of them ends the parser, and with it the loop.
  pipeline(parts, () => {})
  try {
    for await (const row of parser) {
      const { user, item, ts } = row
      if (!user || !item || !WHOLE.test(ts)) {
        throw new Error(`got ${JSON.stringify(row)}`)
      }
      const events = byUser.get(user) ?? []
      byUser.set(user, events)
      events.push({ item, time: Math.max(0, Number(ts)) })
    }
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    const message = `${path} must have columns user, item and ts (whole seconds): ${why}`
    throw new RankError('INVALID_REQUEST', message, { cause })
  }
  const users = heldOut(byUser)
  if (users.length === 0) {
    const message = `${path} must have a user with two events or more, got ${byUser.size} users with fewer`
    throw new RankError('INVALID_REQUEST', message)
  }
  return users
}

function heldOut(byUser: ReadonlyMap<string, HistoryEvent[]>): HeldOutUser[] {
  return [...byUser].flatMap(([id, events]) => {
    events.sort((a, b) => a.time - b.time)
    const target = events.at(-1)
    return target === undefined || events.length < 2
      ? []
      : [{ id, history: events.slice(0, -1), target }]
  })
}
