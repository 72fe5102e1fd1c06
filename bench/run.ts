// npm run bench -- [--python PYTHON] [--out bench/results]: everything, then table and charts.
import { mkdirSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { DEMO_BUNDLE, ensureDemoBundle } from '../server/commands/demo.js'
import { tempFolder } from '../test/fixtures.js'
import { benchFalcon } from './falcon.js'
import { benchHttp } from './http.js'
import { describeMachine } from './machine.js'
import { benchMemory } from './memory.js'
import { writeReport } from './report.js'
import { createScope } from './scope.js'
import { exportPaperShape } from './workload.js'

const { values } = parseArgs({
  options: {
    python: { type: 'string' },
    out: { type: 'string', default: 'bench/results' },
    bundle: { type: 'string', default: DEMO_BUNDLE },
    requests: { type: 'string', default: 'demo/kuairand/requests' },
  },
})
const log = (line: string) => process.stderr.write(`${line}\n`)
const machine = describeMachine()
const scope = createScope()
try {
  const folder = tempFolder(scope)
  log('exporting the paper shape with random weights')
  const bundle = exportPaperShape(`${folder}/paper`)
  const falcon = await benchFalcon(bundle, values.python, log)
  const memory = benchMemory(bundle.folder, log)
  ensureDemoBundle(values.bundle)
  const http = await benchHttp(values.bundle, values.requests, log)
  const result = { machine, falcon, memory, http }
  mkdirSync(values.out, { recursive: true })
  writeFileSync(`${values.out}/cpu.json`, `${JSON.stringify(result, null, 2)}\n`)
  writeReport(result, values.out)
  log(`written to ${values.out}`)
} finally {
  await scope.end()
}
