// npm run bench:reload -- [--ramp-sec N] [--out bench/results]: latency and memory over ten reloads.
import { mkdirSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { DEMO_BUNDLE, ensureDemoBundle } from '../server/commands/demo.js'
import { readBodies } from './http.js'
import { describeMachine } from './machine.js'
import { benchReload } from './reload.js'
import { reloadPage } from './report-reload.js'

const { values } = parseArgs({
  options: {
    out: { type: 'string', default: 'bench/results' },
    'ramp-sec': { type: 'string', default: '10' },
  },
})
const machine = describeMachine()
ensureDemoBundle(DEMO_BUNDLE)
const bodies = readBodies('demo/kuairand/requests')
const result = await benchReload(DEMO_BUNDLE, bodies, Number(values['ramp-sec']), (line) =>
  process.stderr.write(`${line}\n`),
)
mkdirSync(values.out, { recursive: true })
writeFileSync(`${values.out}/reload.json`, `${JSON.stringify({ machine, ...result }, null, 2)}\n`)
writeFileSync(`${values.out}/reload.md`, reloadPage(machine, result))
