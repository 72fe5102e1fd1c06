// npm run bench:overload -- [--out bench/results] [--seconds 60]: open-loop overload at three times the capacity.
import { mkdirSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { DEMO_BUNDLE, ensureDemoBundle } from '../server/commands/demo.js'
import { describeMachine } from './machine.js'
import { benchOverload } from './overload/bench.js'
import { overloadChart, overloadPage } from './overload/report.js'

const { values } = parseArgs({
  options: {
    out: { type: 'string', default: 'bench/results' },
    requests: { type: 'string', default: 'demo/kuairand/requests' },
    seconds: { type: 'string', default: '60' },
  },
})
const log = (line: string) => process.stderr.write(`${line}\n`)
const machine = describeMachine()
ensureDemoBundle(DEMO_BUNDLE)
const result = await benchOverload(
  ['--bundle', DEMO_BUNDLE],
  values.requests,
  Number(values.seconds),
  log,
)
mkdirSync(values.out, { recursive: true })
writeFileSync(`${values.out}/overload.md`, overloadPage(machine, result))
writeFileSync(`${values.out}/overload.svg`, overloadChart(machine, result))
writeFileSync(`${values.out}/overload.json`, `${JSON.stringify({ machine, ...result }, null, 2)}\n`)
