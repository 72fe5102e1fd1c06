import { setTimeout as delay } from 'node:timers/promises'
import { kvKey, kvVariant, userHash } from '../../cache/key.js'
import { connectRedis } from '../../cache/redis.js'
import { parseRedisUrl } from '../../cache/redis-url.js'
import { MUTATE_ENTRIES } from '../../test/mutate-entries.js'
import type { Network } from '../../test/proxy.js'
import type { RedisServer } from '../../test/redis.js'

/** What a fault is done to: one server behind a network, and the bundle whose K/V lies there. */
export type Bed = {
  readonly redis: RedisServer
  readonly proxy: Network
  readonly version: string
}

export type Fault = {
  readonly name: string
  /** Lasts `ms`, and is over when it resolves. */
  inject(bed: Bed, ms: number): Promise<void>
}

const SWAP = `
local keys = redis.call('KEYS', '*:kv:*')
for i = 1, #keys - 1, 2 do
  redis.call('RENAME', keys[i], 'swap')
  redis.call('RENAME', keys[i + 1], keys[i])
  redis.call('RENAME', 'swap', keys[i + 1])
end`
const STEPS = 50
const MUTATIONS_PER_STEP = 200

/** `step` so often within `ms`, on a connection of its own. */
async function repeat(
  { redis }: Bed,
  ms: number,
  step: (client: ReturnType<typeof connectRedis>, i: number) => Promise<unknown>,
): Promise<void> {
  const target = parseRedisUrl(`redis://127.0.0.1:${redis.port}`)
  const client = connectRedis(target, { role: 'fault', commandTimeoutMs: 60_000 })
  try {
    while (client.status !== 'ready') await delay(5)
    for (let i = 0; i < STEPS; i++) {
      await step(client, i)
      await delay(ms / STEPS)
    }
  } finally {
    client.disconnect()
  }
}

export const FAULTS: readonly Fault[] = [
  { name: 'none: a healthy Redis', inject: (_, ms) => delay(ms) },
  {
    name: 'killed, restarted empty',
    async inject({ redis }, ms) {
      await redis.kill()
      await delay(ms)
      await redis.restart()
    },
  },
  {
    name: 'paused (SIGSTOP)',
    async inject({ redis }, ms) {
      redis.pause()
      await delay(ms)
      redis.resume()
    },
  },
  {
    name: 'slow: 50 ms each way',
    async inject({ proxy }, ms) {
      proxy.setDelay(50)
      await delay(ms)
      proxy.setDelay(0)
    },
  },
  {
    name: 'out of memory',
    async inject({ redis }, ms) {
      await redis.cli('config', 'set', 'maxmemory', '1')
      await delay(ms)
      await redis.cli('config', 'set', 'maxmemory', '0')
    },
  },
  {
    name: 'FLUSHALL, 50 times',
    inject: (bed, ms) => repeat(bed, ms, (client) => client.flushall()),
  },
  {
    name: 'password changed',
    async inject({ redis }, ms) {
      const login = ['-a', 'other', '--no-auth-warning']
      await redis.cli('acl', 'setuser', 'default', 'resetpass', '>other')
      await redis.cli(...login, 'client', 'kill', 'type', 'normal')
      await delay(ms)
      await redis.cli(...login, 'acl', 'setuser', 'default', 'nopass')
    },
  },
  {
    name: 'read-only user',
    async inject({ redis }, ms) {
      await redis.cli('acl', 'setuser', 'default', '-@write', '-@scripting')
      await delay(ms)
      await redis.cli('acl', 'setuser', 'default', '+@all')
    },
  },
  {
    name: '10,000 bytes changed',
    inject: (bed, ms) =>
      repeat(bed, ms, (client, i) => client.eval(MUTATE_ENTRIES, 0, i, MUTATIONS_PER_STEP)),
  },
  {
    name: 'entries swapped between users, 50 times',
    inject: (bed, ms) => repeat(bed, ms, (client) => client.eval(SWAP, 0)),
  },
  {
    name: 'values of 100 MB, strings for hashes',
    inject: (bed, ms) =>
      repeat(bed, ms, async (client, i) => {
        const key = kvKey(kvVariant(bed.version, 'fp16'), userHash(`u${i % 6}`))
        await client.unlink(key)
        if (i % 25 === 0) await client.hset(key, { head: Buffer.alloc(1e8) })
        else await client.set(key, 'a string')
      }),
  },
]
