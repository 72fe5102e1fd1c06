// npm run bench:faults -- [--out bench/results]: latency and answers while Redis fails.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { parseArgs } from 'node:util'
import { randomConfig } from '../model/export/random.js'
import { benchFaults } from './faults/bench.js'
import { faultsChart, faultsPage } from './faults/report.js'
import { describeMachine } from './machine.js'
import { exportRandom } from './workload.js'

const SHAPE = { layers: 4, dModel: 128, heads: 4, maxTokens: 1024, items: 10_001 }

const { values } = parseArgs({ options: { out: { type: 'string', default: 'bench/results' } } })
const machine = describeMachine()
const folder = mkdtempSync(`${tmpdir()}/peregrine-bench-`)
try {
  const bundle = exportRandom(randomConfig(SHAPE), `${folder}/bundle`)
  const result = await benchFaults(bundle, (line) => process.stderr.write(`${line}\n`))
  mkdirSync(values.out, { recursive: true })
  writeFileSync(`${values.out}/faults.json`, `${JSON.stringify({ machine, ...result }, null, 2)}\n`)
  writeFileSync(`${values.out}/faults.md`, faultsPage(machine, result))
  writeFileSync(`${values.out}/faults.svg`, faultsChart(machine, result))
} finally {
  rmSync(folder, { recursive: true, force: true })
}
