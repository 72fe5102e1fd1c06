import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { connectRedis, type RedisClient } from '../cache/redis.js'
import { parseRedisUrl, type RedisTarget } from '../cache/redis-url.js'

export type BenchRedis = {
  readonly version: string
  readonly target: RedisTarget
  connect(role: string): Promise<RedisClient>
  stop(): Promise<void>
}

const COMMAND_TIMEOUT_MS = 10_000
/** Another process may take the free port before Redis does. */
const ATTEMPTS = 5

/**
 * A redis-server of the bench's own on 127.0.0.1, which keeps nothing on disk and ends with this process.
 * @throws where there is no redis-server, with how to get one
 */
export async function startBenchRedis(folder: string): Promise<BenchRedis> {
  const version = redisVersion()
  let server: Awaited<ReturnType<typeof launch>> | undefined
  for (let attempt = 1; server === undefined; attempt++) {
    try {
      server = await launch(folder, await freePort())
    } catch (error) {
      if (attempt === ATTEMPTS) throw error
    }
  }
  const { child, port } = server
  const orphan = () => child.kill('SIGKILL')
  process.once('exit', orphan)
  const target = parseRedisUrl(`redis://127.0.0.1:${port}`)
  const clients: RedisClient[] = []
  return {
    version,
    target,
    async connect(role) {
      const client = connectRedis(target, { role, commandTimeoutMs: COMMAND_TIMEOUT_MS })
      clients.push(client)
      await once(client, 'ready')
      return client
    },
    async stop() {
      for (const client of clients) client.disconnect()
      process.off('exit', orphan)
      if (child.exitCode !== null || child.signalCode !== null) return
      const exit = once(child, 'exit')
      child.kill('SIGKILL')
      await exit
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

async function launch(folder: string, port: number) {
  const args = ['--port', String(port), '--bind', '127.0.0.1', '--dir', folder]
  const child = spawn('redis-server', [...args, '--save', '', '--appendonly', 'no'], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const log: string[] = []
  await new Promise<void>((resolve, reject) => {
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on('line', (line) => {
        if (log.length < 100) log.push(line)
        if (line.includes('Ready to accept connections')) resolve()
      })
    }
    child.once('error', reject)
    child.once('exit', (code, signal) => {
      reject(new Error(`redis-server ended with ${code ?? signal}:\n${log.join('\n')}`))
    })
  })
  return { child, port }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  server.close()
  await once(server, 'close')
  if (typeof address !== 'object' || address === null) throw new Error('no free port')
  return address.port
}

const POLL_MS = 5
const PATIENCE_MS = 30_000

/** Polls until `isSo` is true. @throws after 30 s */
export async function until(what: string, isSo: () => Promise<boolean> | boolean): Promise<void> {
  const end = performance.now() + PATIENCE_MS
  while (!(await isSo())) {
    if (performance.now() > end) throw new Error(`waited ${PATIENCE_MS} ms for ${what}`)
    await delay(POLL_MS)
  }
}
