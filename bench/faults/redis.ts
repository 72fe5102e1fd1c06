// Redis servers for the fault bench, and a network in front of one of them.
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'

const run = promisify(execFile)

export type Redis = {
  readonly port: number
  /** What redis-cli prints. */
  cli(...args: string[]): Promise<string>
  /** SIGKILL; nothing was saved. */
  kill(): Promise<void>
  /** SIGSTOP: connections stay open and nothing answers. */
  pause(): void
  resume(): void
  /** On the same port, empty. */
  restart(): Promise<void>
  stop(): Promise<void>
}

/** A redis-server on a free port; a node that may join a cluster where asked for. */
export async function startRedis(isNode = false): Promise<Redis> {
  const folder = mkdtempSync(`${tmpdir()}/peregrine-redis-`)
  const port = await freePort()
  const cluster = isNode
    ? ['--cluster-enabled', 'yes', '--cluster-node-timeout', '1000', '--cluster-config-file', 'n']
    : []
  const launch = async () => {
    const args = ['--port', `${port}`, '--bind', '127.0.0.1', '--dir', folder, '--save', '']
    const child = spawn('redis-server', [...args, ...cluster], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    for await (const line of createInterface({ input: child.stdout })) {
      if (line.includes('Ready to accept')) break
    }
    if (child.exitCode !== null) throw new Error(`redis-server exited with ${child.exitCode}`)
    return child
  }
  let child: ChildProcess = await launch()
  const kill = async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    const exit = once(child, 'exit')
    child.kill('SIGKILL')
    await exit
  }
  return {
    port,
    cli: async (...args) => (await run('redis-cli', ['-e', '-p', `${port}`, ...args])).stdout,
    kill,
    pause: () => child.kill('SIGSTOP'),
    resume: () => child.kill('SIGCONT'),
    async restart() {
      await kill()
      child = await launch()
    },
    async stop() {
      await kill()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

/** Three masters; resolves when each of them calls the cluster ok. */
export async function startCluster(): Promise<readonly Redis[]> {
  const nodes = await Promise.all([startRedis(true), startRedis(true), startRedis(true)])
  const addresses = nodes.map(({ port }) => `127.0.0.1:${port}`)
  await run('redis-cli', ['--cluster', 'create', ...addresses, '--cluster-yes'])
  const isOk = async (node: Redis) => (await node.cli('cluster', 'info')).includes('_state:ok')
  while (!(await Promise.all(nodes.map(isOk))).every(Boolean)) await pause(50)
  return nodes
}

/** A network before a server: `setDelay` holds back whatever passes, either way. */
export async function startProxy(serverPort: number) {
  let delayMs = 0
  const sockets = new Set<Socket>()
  const pass = (from: Socket, to: Socket) => {
    sockets.add(from)
    from.on('data', (bytes) => {
      if (delayMs === 0) to.write(bytes)
      else setTimeout(() => to.write(bytes), delayMs)
    })
    from.on('error', () => {})
    from.on('close', () => {
      sockets.delete(from)
      to.destroy()
    })
  }
  const server = createServer((client) => {
    const upstream = connect(serverPort, '127.0.0.1')
    pass(client, upstream)
    pass(upstream, client)
  })
  const port = await freePort()
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
  return {
    port,
    setDelay(ms: number) {
      delayMs = ms
    },
    stop() {
      for (const socket of sockets) socket.destroy()
      server.close()
    },
  }
}

export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}

/** Below 55,535: a cluster's node also listens 10,000 above. */
async function freePort(): Promise<number> {
  for (;;) {
    const server = createServer().listen(0, '127.0.0.1')
    await once(server, 'listening')
    const address = server.address()
    server.close()
    await once(server, 'close')
    if (typeof address === 'object' && address !== null && address.port < 55_535)
      return address.port
  }
}
