// npm run bench:scaleout -- [--out bench/results]: three replicas behind nginx, one killed, all restarted.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { parseArgs } from 'node:util'
import { randomConfig } from '../model/export/random.js'
import { describeMachine } from './machine.js'
import { benchScaleOut } from './scaleout/bench.js'
import { latencyChart, scaleOutPage, sharesChart } from './scaleout/report.js'
import { exportRandom } from './workload.js'

const SHAPE = { layers: 4, dModel: 128, heads: 4, maxTokens: 1024, items: 10_001 }

const { values } = parseArgs({ options: { out: { type: 'string', default: 'bench/results' } } })
const machine = describeMachine()
const folder = mkdtempSync(`${tmpdir()}/peregrine-bench-`)
try {
  const bundle = exportRandom(randomConfig(SHAPE), `${folder}/bundle`)
  const result = await benchScaleOut(bundle, (line) => process.stderr.write(`${line}\n`))
  const write = (name: string, content: string) => writeFileSync(`${values.out}/${name}`, content)
  mkdirSync(values.out, { recursive: true })
  write('scaleout.json', `${JSON.stringify({ machine, ...result }, null, 2)}\n`)
  write('scaleout.md', scaleOutPage(machine, result))
  write('scaleout.svg', latencyChart(machine, result))
  write('scaleout-kv.svg', sharesChart(machine, result))
} finally {
  rmSync(folder, { recursive: true, force: true })
}
