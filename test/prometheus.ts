// A real Prometheus for tests, on a free port, gone with the scope.
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { type Scope, tempFolder } from './fixtures.js'
import { freePort, until } from './redis.js'

/** For `{ skip: NO_PROMETHEUS }`: false where there is one, or where there must be. */
export const NO_PROMETHEUS =
  hasPrometheus() || process.env.REQUIRE_PROMETHEUS === '1'
    ? false
    : "no prometheus and promtool on PATH: install Debian's package prometheus (REQUIRE_PROMETHEUS=1 makes this a failure)"

function hasPrometheus(): boolean {
  try {
    for (const name of ['prometheus', 'promtool']) {
      execFileSync(name, ['--version'], { stdio: 'ignore' })
    }
    return true
  } catch {
    return false
  }
}

/** One time series of an instant query, with its newest value. */
export type Series = {
  readonly metric: { readonly [label: string]: string }
  readonly value: number
}

export type Prometheus = {
  /** What the path of its HTTP API answers. @throws when it answers an error */
  get(path: string, parameters: { readonly [name: string]: string }): Promise<unknown>
  query(expression: string): Promise<readonly Series[]>
}

/** Starts a Prometheus that keeps exemplars. @param config - text of its configuration file */
export async function startPrometheus(scope: Scope, config: string): Promise<Prometheus> {
  const folder = tempFolder(scope)
  const port = await freePort()
  writeFileSync(`${folder}/prometheus.yml`, config)
  const args = [
    `--config.file=${folder}/prometheus.yml`,
    `--storage.tsdb.path=${folder}/data`,
    `--web.listen-address=127.0.0.1:${port}`,
    '--enable-feature=exemplar-storage',
  ]
  const child = spawn('prometheus', args, { stdio: ['ignore', 'ignore', 'pipe'] })
  const log: string[] = []
  child.stderr.on('data', (chunk) => log.push(String(chunk)))
  const orphan = () => child.kill('SIGKILL')
  process.once('exit', orphan)
  scope.after(async () => {
    process.off('exit', orphan)
    if (child.exitCode !== null) return
    child.kill('SIGTERM')
    await once(child, 'exit')
  })
  const base = `http://127.0.0.1:${port}`
  await until('Prometheus', async () => {
    if (child.exitCode !== null) throw new Error(`prometheus ended:\n${log.join('')}`)
    return (await fetch(`${base}/-/ready`)).ok
  })
  const get: Prometheus['get'] = async (path, parameters) => {
    const response = await fetch(`${base}/api/v1/${path}?${new URLSearchParams(parameters)}`)
    const body: unknown = await response.json()
    if (!response.ok) throw new Error(`${JSON.stringify(parameters)}: ${JSON.stringify(body)}`)
    return typeof body === 'object' && body !== null && 'data' in body ? body.data : undefined
  }
  return {
    get,
    async query(expression) {
      const data = (await get('query', { query: expression })) as {
        readonly result: readonly {
          readonly metric: Series['metric']
          readonly value: readonly [number, string]
        }[]
      }
      return data.result.map(({ metric, value: [, text] }) => ({ metric, value: Number(text) }))
    },
  }
}
