// npm run bench:soak -- [--minutes 30] [--out bench/results]: memory, descriptors and latency over time.
import { mkdirSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { DEMO_BUNDLE, ensureDemoBundle } from '../server/commands/demo.js'
import { integer } from '../server/commands/flags.js'
import { tempFolder } from '../test/fixtures.js'
import { describeMachine } from './machine.js'
import { createScope } from './scope.js'
import { benchSoak } from './soak/bench.js'
import { soakChart, soakPage } from './soak/report.js'

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '30' },
    out: { type: 'string', default: 'bench/results' },
  },
})
const minutes = integer('--minutes', values.minutes, 4, 10_000)
const { out } = values
const machine = describeMachine()
const scope = createScope()
try {
  ensureDemoBundle(DEMO_BUNDLE)
  const log = (line: string) => process.stderr.write(`${line}\n`)
  const result = await benchSoak(DEMO_BUNDLE, tempFolder(scope), minutes, log)
  const page = soakPage(machine, result)
  mkdirSync(out, { recursive: true })
  writeFileSync(`${out}/soak.json`, `${JSON.stringify({ machine, ...result }, null, 2)}\n`)
  writeFileSync(`${out}/soak.md`, page)
  writeFileSync(`${out}/soak.svg`, soakChart(machine, result))
  process.stdout.write(`${page}\n`)
} finally {
  await scope.end()
}
