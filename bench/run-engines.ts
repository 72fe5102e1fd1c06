// npm run bench:engines -- [--out bench/results]: the two engines side by side on this CPU.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { parseArgs } from 'node:util'
import { openBundle } from '../model/manifest.js'
import { DEMO_BUNDLE, ensureDemoBundle } from '../server/commands/demo.js'
import { benchEngines } from './engines.js'
import { describeMachine } from './machine.js'
import { enginesPage } from './report-engines.js'
import { exportPaperShape } from './workload.js'

const { values } = parseArgs({ options: { out: { type: 'string', default: 'bench/results' } } })
const machine = describeMachine()
const folder = mkdtempSync(`${tmpdir()}/peregrine-bench-`)
try {
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
  rmSync(folder, { recursive: true, force: true })
}
