// npm run bench:scaleout -- [--out bench/results]: three replicas behind nginx, one killed, all restarted.
import { mkdirSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { tempFolder } from '../test/fixtures.js'
import { describeMachine } from './machine.js'
import { benchScaleOut } from './scaleout/bench.js'
import { latencyChart, scaleOutPage, sharesChart } from './scaleout/report.js'
import { createScope } from './scope.js'
import { exportSmallShape } from './workload.js'

const { values } = parseArgs({ options: { out: { type: 'string', default: 'bench/results' } } })
const machine = describeMachine()
const scope = createScope()
try {
  const folder = tempFolder(scope)
  const bundle = exportSmallShape(`${folder}/bundle`)
  const result = await benchScaleOut(bundle, (line) => process.stderr.write(`${line}\n`))
  const write = (name: string, content: string) => writeFileSync(`${values.out}/${name}`, content)
  mkdirSync(values.out, { recursive: true })
  write('scaleout.json', `${JSON.stringify({ machine, ...result }, null, 2)}\n`)
  write('scaleout.md', scaleOutPage(machine, result))
  write('scaleout.svg', latencyChart(machine, result))
  write('scaleout-kv.svg', sharesChart(machine, result))
} finally {
  await scope.end()
}
