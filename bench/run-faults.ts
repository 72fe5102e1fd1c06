// npm run bench:faults -- [--out bench/results]: latency and answers while Redis fails.
import { mkdirSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { tempFolder } from '../test/fixtures.js'
import { benchFaults } from './faults/bench.js'
import { faultsChart, faultsPage } from './faults/report.js'
import { describeMachine } from './machine.js'
import { createScope } from './scope.js'
import { exportSmallShape } from './workload.js'

const { values } = parseArgs({ options: { out: { type: 'string', default: 'bench/results' } } })
const machine = describeMachine()
const scope = createScope()
try {
  const folder = tempFolder(scope)
  const bundle = exportSmallShape(`${folder}/bundle`)
  const result = await benchFaults(bundle, (line) => process.stderr.write(`${line}\n`))
  mkdirSync(values.out, { recursive: true })
  writeFileSync(`${values.out}/faults.json`, `${JSON.stringify({ machine, ...result }, null, 2)}\n`)
  writeFileSync(`${values.out}/faults.md`, faultsPage(machine, result))
  writeFileSync(`${values.out}/faults.svg`, faultsChart(machine, result))
} finally {
  await scope.end()
}
