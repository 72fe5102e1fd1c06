import { RankError } from '../model/errors.js'
import type { HistoryEvent, StoredHistory } from '../model/request.js'
import {
  type Appended,
  checkSameAppend,
  type EventLimits,
  type EventStore,
  IDEMPOTENCY_TTL_SEC,
  toBatch,
} from './events.js'
import { appendKey, eventsKey } from './key.js'
import type { RedisClient } from './redis.js'
import { runScript, scriptOf } from './redis-script.js'

/**
 * One append, atomic: all of it happens or nothing. The events are one argument, a line each, because
 * a hundred thousand arguments cost more than they do; ZADD gets as many at a time as Lua's stack
 * holds. `excess` is `excessOf` of events.ts.
 * KEYS: the user's events, and what an idempotency key was answered, where there is one.
 * ARGV: lines "time text", time to live of the events in seconds, maxStoredEvents, slack; digest,
 * duplicates and trimmed of the batch; time to live of the answer.
 * Answers "digest stored duplicates total trimmed", the first answer to a key that was seen before.
 */
const APPEND = scriptOf(`
local first = KEYS[2] and redis.call('GET', KEYS[2])
if first then return first end
local batch, stored, pairs = 0, 0, {}
for time, text in string.gmatch(ARGV[1], '(%d+) ([^\\n]+)') do
  batch = batch + 1
  pairs[#pairs + 1] = time
  pairs[#pairs + 1] = text
  if #pairs == 4000 then
    stored = stored + redis.call('ZADD', KEYS[1], unpack(pairs))
    pairs = {}
  end
end
if #pairs > 0 then stored = stored + redis.call('ZADD', KEYS[1], unpack(pairs)) end
local total = redis.call('ZCARD', KEYS[1])
local max, slack, excess = tonumber(ARGV[3]), tonumber(ARGV[4]), 0
if total > max + slack then
  excess = math.floor((total - max) / slack) * slack
  redis.call('ZREMRANGEBYRANK', KEYS[1], 0, excess - 1)
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
local answer = string.format('%s %d %d %d %d', ARGV[5], stored, ARGV[6] + batch - stored, total - excess, ARGV[7] + excess)
if KEYS[2] then redis.call('SET', KEYS[2], answer, 'EX', ARGV[8]) end
return answer
`)

/** How many events a user has, and the newest ARGV[1] of them: both at one moment. */
const READ = scriptOf(`
return { redis.call('ZCARD', KEYS[1]), redis.call('ZRANGE', KEYS[1], -ARGV[1], -1) }
`)

/**
 * Stored histories that all replicas share: a sorted set per user, score = time, member = canonical
 * text. A command that fails, or takes longer than the client's timeout, is STORE_UNAVAILABLE.
 */
export function createRedisEvents(client: RedisClient, limits: EventLimits): EventStore {
  return {
    async append(user, posted, idempotencyKey) {
      const { events, duplicates, trimmed, digest } = toBatch(posted, limits)
      const keys = [
        eventsKey(user),
        ...(idempotencyKey === undefined ? [] : [appendKey(user, idempotencyKey)]),
      ]
      const args = [
        events.map(({ time, text }) => `${time} ${text}`).join('\n'),
        limits.ttlSec,
        limits.maxStoredEvents,
        limits.slack,
        digest,
        duplicates,
        trimmed,
        IDEMPOTENCY_TTL_SEC,
      ].map(String)
      const answer = await available(() => runScript(client, APPEND, keys, args))
      const [first = '', ...counts] = String(answer).split(' ')
      checkSameAppend(first, digest)
      return toAppended(counts.map(Number))
    },
    async get(user, newest) {
      const key = eventsKey(user)
      if (newest === undefined) {
        return toHistory(await available(() => client.zrange(key, 0, '-1')), 0)
      }
      const answer = await available(() => runScript(client, READ, [key], [String(newest)]))
      const [total, texts] = Array.isArray(answer) ? answer : []
      return toHistory(texts, Number(total))
    },
    async forget(user) {
      await available(() => client.del(eventsKey(user)))
    },
    stats: () => ({ kind: 'redis', isConnected: client.status === 'ready' }),
    close: () => client.disconnect(),
  }
}

function toAppended(counts: readonly number[]): Appended {
  const [stored = 0, duplicates = 0, total = 0, trimmed = 0] = counts
  return { stored, duplicates, total, trimmed }
}

/** One parse for all: it costs half of one per event. `total` of 0 stands for "these are all". */
function toHistory(texts: unknown, total: number): StoredHistory {
  try {
    if (Array.isArray(texts)) {
      const events: unknown = JSON.parse(`[${texts.join()}]`)
      if (Array.isArray(events) && events.length === texts.length && events.every(isEvent)) {
        return { events, older: Math.max(0, total - events.length) }
      }
    }
  } catch {
    // Said below, without quoting what is somebody's history.
  }
  throw new RankError('STORE_UNAVAILABLE', 'stored events must be events as JSON, got other text')
}

/** Enough to keep the pipeline whole: who else writes there has the password. */
function isEvent(value: unknown): value is HistoryEvent {
  return (
    typeof value === 'object' &&
    value !== null &&
    'time' in value &&
    Number.isSafeInteger(value.time) &&
    'item' in value &&
    typeof value.item === 'string' &&
    (!('actions' in value) || Array.isArray(value.actions)) &&
    (!('features' in value) || (typeof value.features === 'object' && value.features !== null))
  )
}

async function available<T>(command: () => Promise<T>): Promise<T> {
  try {
    return await command()
  } catch (error) {
    // Without the cause: it carries the command, and with it the user's events.
    const message = `Redis must answer for stored events, got ${reasonOf(error)}`
    throw new RankError('STORE_UNAVAILABLE', message)
  }
}

/** `OOM`, `NOPERM`, … of an answer; else what happened to the connection. */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return 'an unknown fault'
  if (error.message === 'Command timed out') return 'no answer in time'
  return error.name === 'ReplyError'
    ? (/^[A-Z]+/.exec(error.message)?.[0] ?? 'an error')
    : 'no connection'
}
