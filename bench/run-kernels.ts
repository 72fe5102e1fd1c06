// npm run bench:kernels -- [--python PYTHON] [--kernels auto] [--out bench/results]: kernels on this CPU.
import { mkdirSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { kernelFolder } from '../model/engine/kernel-folder.js'
import { RankError } from '../model/errors.js'
import { tempFolder } from '../test/fixtures.js'
import { withFloat32Kv } from '../test/kernel-library.js'
import { benchKernels } from './kernels-cpu.js'
import { describeMachine } from './machine.js'
import { kernelsChart, kernelsPage } from './report-kernels.js'
import { createScope } from './scope.js'
import { exportPaperShape } from './workload.js'

const { values } = parseArgs({
  options: {
    python: { type: 'string' },
    kernels: { type: 'string', default: 'auto' },
    out: { type: 'string', default: 'bench/results' },
  },
})
const kernels = kernelFolder(values.kernels, 'cpu')
if (kernels === undefined) {
  throw new RankError('ENGINE_UNAVAILABLE', 'no kernels here: npm run build:kernels makes them')
}
const machine = describeMachine()
const scope = createScope()
try {
  const folder = tempFolder(scope)
  const bundle = exportPaperShape(`${folder}/paper`)
  const log = (line: string) => process.stderr.write(`${line}\n`)
  const folders = { kernels, float32Kv: withFloat32Kv(scope, kernels) }
  const result = await benchKernels(bundle, folders, values.python, log)
  mkdirSync(values.out, { recursive: true })
  const { library: _, ...kept } = result
  const json = JSON.stringify({ machine, ...kept }, null, 2)
  writeFileSync(`${values.out}/kernels-cpu.json`, `${json}\n`)
  writeFileSync(`${values.out}/kernels-cpu.md`, kernelsPage(machine, result))
  writeFileSync(`${values.out}/kernels-cpu.svg`, kernelsChart(machine, result))
} finally {
  await scope.end()
}
