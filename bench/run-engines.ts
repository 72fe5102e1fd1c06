// npm run bench:engines -- [--out bench/results]: the two engines side by side on this CPU.
import { mkdirSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { openBundle } from '../model/manifest.js'
import { DEMO_BUNDLE, ensureDemoBundle } from '../server/commands/demo.js'
import { tempFolder } from '../test/fixtures.js'
import { benchEngines } from './engines.js'
import { describeMachine } from './machine.js'
import { enginesPage } from './report-engines.js'
import { createScope } from './scope.js'
import { exportPaperShape } from './workload.js'

const { values } = parseArgs({ options: { out: { type: 'string', default: 'bench/results' } } })
const machine = describeMachine()
const scope = createScope()
try {
  const folder = tempFolder(scope)
  ensureDemoBundle(DEMO_BUNDLE)
  const bundles = [exportPaperShape(`${folder}/paper`), openBundle(DEMO_BUNDLE)]
  const result = await benchEngines(bundles, (line) => process.stderr.write(`${line}\n`))
  mkdirSync(values.out, { recursive: true })
  writeFileSync(
    `${values.out}/engines.json`,
    `${JSON.stringify({ machine, ...result }, null, 2)}\n`,
  )
  writeFileSync(`${values.out}/engines.md`, enginesPage(machine, result))
} finally {
  await scope.end()
}
