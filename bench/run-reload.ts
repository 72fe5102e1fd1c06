// npm run bench:reload -- [--ramp-sec N] [--per-second N] [--out bench/results]: latency and memory over ten reloads,
// at a load of so many requests per second; half of the capacity where nobody says.
import { mkdirSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { DEMO_BUNDLE, ensureDemoBundle } from '../server/commands/demo.js'
import { integer } from '../server/commands/flags.js'
import { readBodies } from './http.js'
import { describeMachine } from './machine.js'
import { benchReload } from './reload.js'
import { reloadPage } from './report-reload.js'

/** The load ends after half an hour, and calms are as long as reloads. */
const MOST_RAMP_SEC = 80
const { values } = parseArgs({
  options: {
    out: { type: 'string', default: 'bench/results' },
    'ramp-sec': { type: 'string', default: '20' },
    'per-second': { type: 'string' },
  },
})
const machine = describeMachine()
ensureDemoBundle(DEMO_BUNDLE)
const bodies = readBodies('demo/kuairand/requests')
const perSecond = values['per-second']
const options = {
  rampSec: integer('--ramp-sec', values['ramp-sec'], 0, MOST_RAMP_SEC),
  ...(perSecond && { perSecond: integer('--per-second', perSecond, 1, 100_000) }),
}
const result = await benchReload(DEMO_BUNDLE, bodies, options, (line) =>
  process.stderr.write(`${line}\n`),
)
mkdirSync(values.out, { recursive: true })
writeFileSync(`${values.out}/reload.json`, `${JSON.stringify({ machine, ...result }, null, 2)}\n`)
writeFileSync(`${values.out}/reload.md`, reloadPage(machine, result))
