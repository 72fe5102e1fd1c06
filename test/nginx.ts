// A real nginx with the configuration of deploy/nginx before replicas on this machine.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, copyFileSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { type Scope, tempFolder } from './fixtures.js'
import { freePort, until } from './redis.js'

/** For `{ skip: NO_NGINX }`: false where there is an nginx, or where there must be one. */
export const NO_NGINX =
  hasNginx() || process.env.REQUIRE_NGINX === '1'
    ? false
    : "no nginx on PATH: install Debian's package nginx-light (REQUIRE_NGINX=1 makes this a failure)"

function hasNginx(): boolean {
  try {
    execFileSync('nginx', ['-v'], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

/** One line of nginx's log. */
export type Passed = {
  readonly method: string
  readonly status: number
  /** Addresses that were tried, with ", " between them; likewise their statuses. */
  readonly upstream: string
  readonly upstreamStatus: string
}

export type Nginx = {
  readonly port: number
  /** Answers in the log up to now. A worker writes one after it was sent: the next may come in before it. */
  logged(): number
  /** What was passed on up to now, in the order of the log. */
  passed(): readonly Passed[]
}

/** Starts nginx before the replicas on these ports, and waits until it listens. */
export async function startNginx(scope: Scope, replicas: readonly number[]): Promise<Nginx> {
  const folder = tempFolder(scope)
  const port = await freePort()
  copyFileSync('deploy/nginx/nginx.conf', `${folder}/nginx.conf`)
  const upstreams = readFileSync('deploy/nginx/upstreams.conf', 'utf8')
  writeFileSync(`${folder}/upstreams.conf`, onThisMachine(upstreams, replicas))
  writeFileSync(`${folder}/listen.conf`, `listen 127.0.0.1:${port};\n`)
  const logs = { access: `${folder}/access.log`, error: `${folder}/error.log` }
  // Files, not pipes: nginx opens /dev/stdout by its name.
  const [out, error] = [openSync(logs.access, 'a'), openSync(logs.error, 'a')]
  const child: ChildProcess = spawn(
    'nginx',
    ['-p', folder, '-c', `${folder}/nginx.conf`, '-g', `daemon off; pid ${folder}/nginx.pid;`],
    { stdio: ['ignore', out, error] },
  )
  closeSync(out)
  closeSync(error)
  const orphan = () => child.kill('SIGTERM')
  process.once('exit', orphan)
  scope.after(async () => {
    process.off('exit', orphan)
    if (child.exitCode !== null || child.signalCode !== null) return
    const exit = once(child, 'exit')
    child.kill('SIGTERM')
    await exit
  })
  await until('nginx', async () => {
    if (child.exitCode !== null) throw new Error(readFileSync(logs.error, 'utf8'))
    await fetch(`http://127.0.0.1:${port}/metrics`)
    return true
  })
  const lines = () =>
    readFileSync(logs.access, 'utf8')
      .split('\n')
      .filter((line) => line !== '')
  // The line of that last question, or the first to ask would take it for theirs.
  await until('nginx to log', () => lines().length > 0)
  return {
    port,
    logged: () => lines().length,
    passed: () =>
      lines()
        .map((line): Passed => JSON.parse(line))
        .filter(({ upstream }) => upstream !== ''),
  }
}

/** The same lines for other addresses. */
function onThisMachine(upstreams: string, replicas: readonly number[]): string {
  const lines = upstreams.split('\n').filter((line) => line.startsWith('server '))
  if (lines.length !== replicas.length) {
    throw new Error(`upstreams.conf names ${lines.length} replicas, got ${replicas.length}`)
  }
  return lines
    .map((line, i) => line.replace(/^server \S+/, `server 127.0.0.1:${replicas[i]}`))
    .join('\n')
}
