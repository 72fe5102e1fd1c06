// npm run fuzz -- [--requests 50000] [--seed 1]: the demo model behind a real socket, fuzzed by its own
// OpenAPI document. Exits 1 with the first faults.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { parseArgs } from 'node:util'
import { exportBundle } from '../server/commands/export.js'
import { integer } from '../server/commands/flags.js'
import { createProgress } from '../server/commands/progress.js'
import type { FuzzFault, FuzzResult } from './fuzz/fuzz.js'
import { fuzzServer, socketSender } from './fuzz/target.js'
import { startServer } from './load.js'

const DEMO = 'demo/kuairand'
/** Names of the demo model's features. */
const WORDS = {
  features: ['user_active_degree', 'fans_user_num_range', 'tab', 'author', 'tag', 'duration'],
}
const MAX_SHOWN_BYTES = 300

const { values } = parseArgs({
  options: {
    requests: { type: 'string', default: '50000' },
    seed: { type: 'string', default: '1' },
  },
})
const count = integer('--requests', values.requests, 1, 1e9)
const seed = integer('--seed', values.seed, 0, 2 ** 31)
const folder = mkdtempSync(`${tmpdir()}/peregrine-fuzz-`)
try {
  exportBundle(DEMO, `${folder}/bundle`, 'fp32')
  const server = await startServer(['--bundle', `${folder}/bundle`, '--log-level', 'error'])
  const sender = socketSender(`http://127.0.0.1:${server.port}`)
  const progress = createProgress('fuzz', count)
  try {
    const onAnswer = () => progress.advance()
    const result = await fuzzServer({ send: sender.send, count, seed, words: WORDS, onAnswer })
    process.stdout.write(`${linesOf(result).join('\n')}\n`)
    process.exitCode = result.faults.length === 0 ? 0 : 1
  } finally {
    sender.close()
    await server.stop()
  }
} finally {
  rmSync(folder, { recursive: true, force: true })
}

function linesOf({ counts, faults }: FuzzResult): string[] {
  const lines = [...counts].map(([name, statuses]) => {
    const parts = [...statuses].sort(([a], [b]) => a - b).map(([status, n]) => `${status}: ${n}`)
    return `${name}  ${parts.join(', ')}`
  })
  return [...lines.sort(), ...faults.map(lineOf), `${count} requests, ${faults.length} faults`]
}

function lineOf({ index, request, status, why }: FuzzFault): string {
  const body = request.payload?.toString('latin1').slice(0, MAX_SHOWN_BYTES) ?? ''
  return `FAULT ${index}: ${status}, ${why}\n  ${request.method} ${request.url} ${JSON.stringify(request.headers)}\n  ${body}`
}
