import { hash } from 'node:crypto'
import type { RedisClient } from './redis.js'

/** A Lua script, which Redis runs as one command. */
export type Script = { readonly source: string; readonly sha: string }

export function scriptOf(source: string): Script {
  return { source, sha: hash('sha1', source) }
}

/** Runs a script by its digest; sent as a whole where the server is new, or was restarted. */
export async function runScript(
  client: RedisClient,
  { source, sha }: Script,
  keys: readonly string[],
  args: readonly (string | number | Buffer)[],
): Promise<unknown> {
  try {
    return await client.evalsha(sha, keys.length, ...keys, ...args)
  } catch (error) {
    if (!(error instanceof Error) || !error.message.startsWith('NOSCRIPT')) throw error
    return client.eval(source, keys.length, ...keys, ...args)
  }
}
