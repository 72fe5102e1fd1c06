import type { RedisClient } from './redis.js'
import type { WriteOutcome } from './redis-kv.js'
import { runScript, scriptOf } from './redis-script.js'

/** The head's field; pages are named by digests, which are longer. */
export const HEAD_FIELD = 'head'

export type Commit = {
  readonly key: string
  /** Key of the set of variants in which there is K/V of this user. */
  readonly versions: string
  /** The head that the writer began from, byte for byte; empty = none. */
  readonly previous: Uint8Array
  readonly head: Uint8Array
  readonly ttlMs: number
  readonly variant: string
  /** All pages of the new head. */
  readonly fields: readonly string[]
}

/**
 * The head and the entry's time to live, in one round trip; nothing where there is none. A head that is
 * too long to be one is not even sent: what is 100 MB long would stand before all other replies. Its
 * entry goes, and its length comes instead.
 */
const HEAD = scriptOf(`
local bytes = redis.call('HSTRLEN', KEYS[1], 'head')
if bytes == 0 then return false end
if bytes > tonumber(ARGV[1]) then
  redis.call('UNLINK', KEYS[1])
  return bytes
end
return { redis.call('HGET', KEYS[1], 'head'), redis.call('PTTL', KEYS[1]) }`)

/** Pages come before their head; a key without a head must not stay for ever. */
const STAGE = scriptOf(`
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end`)

/**
 * The new head, if nobody else wrote one meanwhile and all its pages are there; other pages go. An
 * entry without one of its pages goes as a whole: what is appended to it would never be found.
 */
const COMMIT = scriptOf(`
if (redis.call('HGET', KEYS[1], 'head') or '') ~= ARGV[1] then return 'conflict' end
local mine = { head = true }
for i = 5, #ARGV do
  if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 0 then
    redis.call('UNLINK', KEYS[1])
    return 'lost'
  end
  mine[ARGV[i]] = true
end
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if not mine[field] then redis.call('HDEL', KEYS[1], field) end
end
redis.call('HSET', KEYS[1], 'head', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('SADD', KEYS[2], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 'written'`)

/** Deletes an entry that is still the one that was read, and whatever is no entry at all. */
const DISCARD = scriptOf(`
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' or redis.call('HGET', KEYS[1], 'head') == ARGV[1] then
  redis.call('UNLINK', KEYS[1])
end`)

/** A longer life for an entry that is still the one that was read, and for what a deletion finds it by. */
const RENEW = scriptOf(`
if redis.call('HGET', KEYS[1], 'head') == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  redis.call('SADD', KEYS[2], ARGV[3])
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end`)

const FORGET = scriptOf(`
redis.call('UNLINK', KEYS[1])
redis.call('HSET', KEYS[1], 'head', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])`)

/** A head of at most `maxBytes` and the milliseconds that it has left, or the length of what is longer. */
export async function readHead(
  client: RedisClient,
  key: string,
  maxBytes: number,
): Promise<{ readonly raw: Buffer; readonly leftMs: number } | number | undefined> {
  const reply = await runScript(client, HEAD, [key], [maxBytes], 'bytes')
  if (typeof reply === 'number') return reply
  if (!Array.isArray(reply)) return undefined
  const [raw, leftMs]: unknown[] = reply
  return Buffer.isBuffer(raw) ? { raw, leftMs: Number(leftMs) } : undefined
}

/** The scripts on one connection. Each touches one user's keys only, which share a hash tag. */
export function kvScripts(client: RedisClient) {
  return {
    async stage(key: string, ttlMs: number, pages: readonly [field: string, page: Buffer][]) {
      await runScript(client, STAGE, [key], [ttlMs, ...pages.flat()])
    },
    async commit({ key, versions, previous, head, ttlMs, variant, fields }: Commit) {
      const args = [Buffer.from(previous), Buffer.from(head), ttlMs, variant, ...fields]
      const outcome = await runScript(client, COMMIT, [key, versions], args)
      return OUTCOMES.find((one) => one === outcome) ?? 'lost'
    },
    async discard(key: string, head: Uint8Array) {
      await runScript(client, DISCARD, [key], [Buffer.from(head)])
    },
    async renew({ key, versions, head, ttlMs, variant }: Omit<Commit, 'previous' | 'fields'>) {
      await runScript(client, RENEW, [key, versions], [Buffer.from(head), ttlMs, variant])
    },
    async forget(key: string, mark: Buffer, ttlMs: number) {
      await runScript(client, FORGET, [key], [mark, ttlMs])
    },
  }
}

const OUTCOMES: readonly WriteOutcome[] = ['written', 'conflict', 'lost']
