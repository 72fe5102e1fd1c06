import { createReadStream, existsSync } from 'node:fs'
import { createGunzip } from 'node:zlib'
import { parse } from 'csv-parse'
import { RankError } from '../../model/errors.js'
import type { HistoryEvent } from '../../model/request.js'

const LOG = 'log_standard_0425_0508.csv.gz'
const EARLIER = 'history_0409_0424_last50.csv.gz'
const EARLIER_META = 'history_meta.csv.gz'
const USERS = 'user_features_pure.csv.gz'

/** 9 April 2022, 00:00 +08:00, in ms: where the interpolated times of the earlier history begin. */
const EARLIER_START_MS = 1_649_433_600_000
const TEST_DAYS = { first: 20220505, last: 20220508 }

/** An exposure with what the user did; `isTest`: one of the test days, to be predicted. */
export type Exposure = HistoryEvent & {
  readonly actions: readonly string[]
  readonly isTest: boolean
}

export type KuaiRandUser = {
  readonly id: string
  /** All columns of the user table, as text; empty ones left out. */
  readonly features: { readonly [column: string]: string }
  /** Oldest first: the earlier history, then the log. */
  readonly events: readonly Exposure[]
}

/**
 * The users of KuaiRand-Pure who have test-day exposures, with every exposure in order.
 * Rules (they are those of model/train/data.py): exact duplicate log rows count once; a user's log
 * is ordered by time, then file order; the earlier history comes first, its times interpolated
 * between 9 April and the user's last_time_ms; where long_view is 0 its click is unknown.
 * @throws {RankError} INVALID_REQUEST when the folder does not hold the data set
 */
export async function readKuaiRand(folder: string): Promise<KuaiRandUser[]> {
  const log = await readLog(folder)
  const meta = new Map<string, { length: number; lastMs: number }>()
  for await (const row of rows(folder, EARLIER_META)) {
    meta.set(text(row, 'user_id'), {
      length: Number(row.history_len),
      lastMs: Number(row.last_time_ms),
    })
  }
  const earlier = new Map<string, Exposure[]>()
  for await (const row of rows(folder, EARLIER)) {
    const user = text(row, 'user_id')
    const known = meta.get(user)
    if (known === undefined || !log.has(user)) continue
    const position = Number(row.pos) + 1
    const ms = EARLIER_START_MS + ((known.lastMs - EARLIER_START_MS) * position) / known.length
    const events = earlier.get(user) ?? []
    earlier.set(user, events)
    events.push({
      item: text(row, 'video_id'),
      time: Math.floor(ms / 1000),
      actions: [
        ...(row.long_view === '1' ? ['click', 'long_view'] : ['click_unknown']),
        ...(row.is_like === '1' ? ['like'] : []),
      ],
      isTest: false,
    })
  }
  const features = new Map<string, { [column: string]: string }>()
  for await (const row of rows(folder, USERS)) {
    const user = text(row, 'user_id')
    if (!log.has(user)) continue
    features.set(user, Object.fromEntries(Object.entries(row).filter(([, value]) => value !== '')))
  }
  return [...log].map(([id, events]) => ({
    id,
    features: features.get(id) ?? {},
    events: [...(earlier.get(id) ?? []), ...events],
  }))
}

/** Log exposures per user, time-ordered, of users with at least one on a test day. */
async function readLog(folder: string): Promise<Map<string, Exposure[]>> {
  const seen = new Set<string>()
  const byUser = new Map<string, (Exposure & { readonly ms: number })[]>()
  for await (const row of rows(folder, LOG)) {
    const whole = Object.values(row).join()
    if (seen.has(whole)) continue
    seen.add(whole)
    const user = text(row, 'user_id')
    const day = Number(row.date)
    const ms = Number(row.time_ms)
    const events = byUser.get(user) ?? []
    byUser.set(user, events)
    events.push({
      item: text(row, 'video_id'),
      time: Math.floor(ms / 1000),
      features: { tab: text(row, 'tab') },
      actions: [
        ...(row.is_click === '1' ? ['click'] : []),
        ...(row.long_view === '1' ? ['long_view'] : []),
        ...(row.is_like === '1' ? ['like'] : []),
      ],
      isTest: day >= TEST_DAYS.first && day <= TEST_DAYS.last,
      ms,
    })
  }
  const tested = [...byUser].filter(([, events]) => events.some(({ isTest }) => isTest))
  return new Map(
    tested.map(([user, events]) => [
      user,
      events.sort((a, b) => a.ms - b.ms).map(({ ms: _, ...event }) => event),
    ]),
  )
}

async function* rows(folder: string, file: string): AsyncGenerator<Record<string, string>> {
  const path = `${folder}/${file}`
  if (!existsSync(path)) {
    throw new RankError(
      'INVALID_REQUEST',
      `${folder} does not hold KuaiRand-Pure: ${file} is missing`,
    )
  }
  const parser = createReadStream(path)
    .pipe(createGunzip())
    .pipe(parse({ columns: true }))
  for await (const row of parser) yield row
}

function text(row: Record<string, string>, column: string): string {
  const value = row[column]
  if (value === undefined) throw new RankError('INVALID_REQUEST', `the data lacks column ${column}`)
  return value
}
