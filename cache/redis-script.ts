import { hash } from 'node:crypto'
import type { RedisClient } from './redis.js'

/** A Lua script, which Redis runs as one command. */
export type Script = { readonly source: string; readonly sha: string }

export function scriptOf(source: string): Script {
  return { source, sha: hash('sha1', source) }
}

/**
 * Runs a script by its digest; sent as a whole where the server is new, or was restarted. Strings of its
 * reply are texts or bytes.
 */
export async function runScript(
  client: RedisClient,
  { source, sha }: Script,
  keys: readonly string[],
  args: readonly (string | number | Buffer)[],
  reply: 'texts' | 'bytes' = 'texts',
): Promise<unknown> {
  const rest = [keys.length, ...keys, ...args]
  const run = (command: string, script: string): Promise<unknown> =>
    reply === 'texts'
      ? client.call(command, script, ...rest)
      : client.callBuffer(command, script, ...rest)
  try {
    return await run('evalsha', sha)
  } catch (error) {
    if (!(error instanceof Error) || !error.message.startsWith('NOSCRIPT')) throw error
    return run('eval', source)
  }
}
