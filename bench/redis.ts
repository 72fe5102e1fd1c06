import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { connectRedis, type RedisClient } from '../cache/redis.js'
import type { LongStrings } from '../cache/redis-receiver.js'
import { parseRedisUrl, type RedisTarget } from '../cache/redis-url.js'
import type { Scope } from '../test/fixtures.js'
import { startRedis } from '../test/redis.js'

export type BenchRedis = {
  readonly version: string
  readonly target: RedisTarget
  connect(role: string, longStrings?: LongStrings): Promise<RedisClient>
}

const COMMAND_TIMEOUT_MS = 10_000

/**
 * A Redis of the bench's own, with connections to it.
 * @throws where there is no redis-server, with how to get one
 */
export async function startBenchRedis(scope: Scope): Promise<BenchRedis> {
  const version = redisVersion()
  const { url } = await startRedis(scope)
  const target = parseRedisUrl(url)
  return {
    version,
    target,
    async connect(role, longStrings) {
      const client = connectRedis(target, {
        role,
        commandTimeoutMs: COMMAND_TIMEOUT_MS,
        ...(longStrings !== undefined && { longStrings }),
      })
      scope.after(() => client.disconnect())
      await once(client, 'ready')
      return client
    },
  }
}

function redisVersion(): string {
  try {
    const text = execFileSync('redis-server', ['--version'], { encoding: 'utf8' })
    return /v=(\S+)/.exec(text)?.[1] ?? text.trim()
  } catch (cause) {
    throw new Error("no redis-server on PATH: install Debian's package redis-server", { cause })
  }
}
