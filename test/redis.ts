// Real Redis servers for tests and benches: on free ports, in a temporary folder, gone with the scope.
import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { type Scope, tempFolder } from './fixtures.js'

const run = promisify(execFile)

/** For `{ skip: NO_REDIS }`: false where there is a redis-server, or where there must be one. */
export const NO_REDIS = hasRedis() || process.env.REQUIRE_REDIS === '1' ? false : whyNot()

function hasRedis(): boolean {
  try {
    execFileSync('redis-server', ['--version'], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

function whyNot(): string {
  return "no redis-server on PATH: install Debian's package redis-server (REQUIRE_REDIS=1 makes this a failure)"
}

export type ServerOptions = {
  /** Lines of redis.conf: `requirepass secret`, `user alice on >secret ~* +@all`, `maxmemory 2mb`. */
  readonly config?: readonly string[]
  /** Credentials of `cli`, where the configuration asks for some. */
  readonly user?: string
  readonly password?: string
  /** TLS only, with a certificate that is asked of clients too. */
  readonly tls?: Certificates
  /** A free one when absent. */
  readonly port?: number
  readonly isSentinel?: boolean
}

export type RedisServer = {
  readonly port: number
  /** `redis://127.0.0.1:port`, without credentials. */
  readonly url: string
  /** What redis-cli prints. @throws when it answers an error */
  cli(...args: string[]): Promise<string>
  /** SIGTERM, or SIGKILL: nothing is saved either way. */
  stop(): Promise<void>
  kill(): Promise<void>
  /** SIGSTOP: connections stay open and nothing answers. */
  pause(): void
  resume(): void
  /** On the same port, empty; kills it first where it still runs. */
  restart(): Promise<void>
}

/** Starts a redis-server and waits until it answers. @throws when it ends instead, with its log */
export async function startRedis(scope: Scope, options: ServerOptions = {}): Promise<RedisServer> {
  const { tls, isSentinel = false } = options
  const folder = tempFolder(scope)
  // Another process may take a free port before Redis does; one that a test chose may not.
  const attempts = options.port === undefined ? 5 : 1
  let port = 0
  let child: ChildProcess | undefined
  for (let attempt = 1; child === undefined; attempt++) {
    port = options.port ?? (await freePort())
    try {
      child = await launch(folder, port, options)
    } catch (error) {
      if (attempt === attempts) throw error
    }
  }
  const end = (signal: NodeJS.Signals) => async () => {
    const ended = child
    if (ended === undefined || ended.exitCode !== null || ended.signalCode !== null) return
    const exit = once(ended, 'exit')
    ended.kill(signal)
    await exit
  }
  const kill = end('SIGKILL')
  const orphan = () => child?.kill('SIGKILL')
  process.once('exit', orphan)
  scope.after(async () => {
    process.off('exit', orphan)
    await kill()
  })
  return {
    port,
    url: `${tls === undefined ? 'redis' : 'rediss'}://127.0.0.1:${port}`,
    async cli(...args) {
      const login = [
        ...(options.user === undefined ? [] : ['--user', options.user]),
        ...(options.password === undefined
          ? []
          : ['--pass', options.password, '--no-auth-warning']),
        ...(tls === undefined
          ? []
          : ['--tls', '--cacert', tls.ca, '--cert', tls.cert, '--key', tls.key]),
      ]
      const { stdout } = await run('redis-cli', ['-e', '-p', String(port), ...login, ...args])
      return stdout.trimEnd()
    },
    stop: end('SIGTERM'),
    kill,
    pause: () => child?.kill('SIGSTOP'),
    resume: () => child?.kill('SIGCONT'),
    async restart() {
      await kill()
      child = await launch(folder, port, { ...options, isSentinel })
    },
  }
}

async function launch(folder: string, port: number, options: ServerOptions): Promise<ChildProcess> {
  const { tls, config = [], isSentinel = false } = options
  const listen =
    tls === undefined
      ? [`port ${port}`]
      : [
          'port 0',
          `tls-port ${port}`,
          `tls-ca-cert-file ${tls.ca}`,
          `tls-cert-file ${tls.cert}`,
          `tls-key-file ${tls.key}`,
        ]
  const data = isSentinel ? [] : ['save ""', 'appendonly no']
  const file = `${folder}/redis-${port}.conf`
  writeFileSync(
    file,
    [`dir ${folder}`, 'bind 127.0.0.1', ...listen, ...data, ...config, ''].join('\n'),
  )
  const args = isSentinel ? [file, '--sentinel'] : [file]
  const child = spawn('redis-server', args, { stdio: ['ignore', 'pipe', 'pipe'] })
  const log: string[] = []
  const answers = new Promise<void>((resolve, reject) => {
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on('line', (line) => {
        if (log.length < 100) log.push(line)
        // A Sentinel's last word is its id; it listens by then.
        if (/Ready to accept connections|Sentinel ID is/.test(line)) resolve()
      })
    }
    child.once('error', reject)
    child.once('exit', (code, signal) => {
      reject(new Error(`redis-server ended with ${code ?? signal}:\n${log.join('\n')}`))
    })
  })
  await answers
  return child
}

export type RedisCluster = {
  readonly nodes: readonly RedisServer[]
  /** `redis-cluster://` with all nodes. */
  readonly url: string
}

/** Three masters without replicas, each with a third of the slots. */
export async function startCluster(scope: Scope): Promise<RedisCluster> {
  const nodes = await Promise.all(
    Array.from({ length: 3 }, async () => {
      const folder = tempFolder(scope)
      return startRedis(scope, {
        config: [
          'cluster-enabled yes',
          `cluster-config-file ${folder}/nodes.conf`,
          'cluster-node-timeout 1000',
        ],
      })
    }),
  )
  const addresses = nodes.map(({ port }) => `127.0.0.1:${port}`)
  await run('redis-cli', ['--cluster', 'create', ...addresses, '--cluster-yes'])
  await until('every node to call the cluster ok', async () => {
    const states = await Promise.all(nodes.map((node) => node.cli('cluster', 'info')))
    return states.every((state) => state.includes('cluster_state:ok'))
  })
  return { nodes, url: `redis-cluster://${addresses.join(',')}` }
}

/** A Sentinel alone, quorum 1, that watches `master` under the name `mymaster`. */
export function startSentinel(
  scope: Scope,
  master: RedisServer,
  options: { readonly config?: readonly string[]; readonly masterPassword?: string } = {},
): Promise<RedisServer> {
  const { config = [], masterPassword } = options
  const login =
    masterPassword === undefined ? [] : [`sentinel auth-pass mymaster ${masterPassword}`]
  return startRedis(scope, {
    isSentinel: true,
    config: [`sentinel monitor mymaster 127.0.0.1 ${master.port} 1`, ...login, ...config],
  })
}

/** Paths of PEM files: an authority, and one certificate for 127.0.0.1 that server and clients share. */
export type Certificates = { readonly ca: string; readonly cert: string; readonly key: string }

export function makeCertificates(scope: Scope): Certificates {
  const folder = tempFolder(scope)
  const openssl = (...args: string[]) =>
    execFileSync('openssl', args, { cwd: folder, stdio: ['ignore', 'ignore', 'ignore'] })
  const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']
  openssl('req', '-x509', ...newKey, '-keyout', 'ca.key', '-out', 'ca.crt', '-subj', '/CN=test')
  openssl('req', ...newKey, '-keyout', 'redis.key', '-out', 'redis.csr', '-subj', '/CN=127.0.0.1')
  writeFileSync(`${folder}/san`, 'subjectAltName=IP:127.0.0.1,DNS:localhost')
  const sign = ['-CA', 'ca.crt', '-CAkey', 'ca.key', '-CAcreateserial', '-extfile', 'san']
  openssl('x509', '-req', '-in', 'redis.csr', ...sign, '-out', 'redis.crt')
  return {
    ca: `${folder}/ca.crt`,
    cert: `${folder}/redis.crt`,
    key: `${folder}/redis.key`,
  }
}

const POLL_MS = 20
const PATIENCE_MS = 30_000

/** Polls until `isSo` is true; what it throws counts as false. @throws after 30 s, with the last fault */
export async function until(what: string, isSo: () => Promise<boolean> | boolean): Promise<void> {
  const end = performance.now() + PATIENCE_MS
  let fault: unknown
  while (performance.now() < end) {
    try {
      if (await isSo()) return
    } catch (error) {
      fault = error
    }
    await delay(POLL_MS)
  }
  throw new Error(`waited ${PATIENCE_MS} ms for ${what}, last: ${fault}`, { cause: fault })
}

/** A port that is free now; below 55,535, for a cluster node also listens 10,000 above. */
export async function freePort(): Promise<number> {
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
