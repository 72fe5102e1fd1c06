// npm run bench:overload -- [--shape demo|paper] [--server-cpus 0-3 --load-cpus 4-15] [--seconds 60]
// [--out bench/results]: open-loop overload at three times the capacity. With CPUs of their own, by taskset,
// neither the server nor its load takes time from the other. Needs dist, node_modules and demo/kuairand only.
import { mkdirSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { RankError } from '../model/errors.js'
import { tempFolder } from '../test/fixtures.js'
import { describeMachine } from './machine.js'
import { benchOverload } from './overload/bench.js'
import { overloadChart, overloadPage } from './overload/report.js'
import { SHAPES } from './overload/shapes.js'
import { createScope } from './scope.js'

const { values } = parseArgs({
  options: {
    out: { type: 'string', default: 'bench/results' },
    shape: { type: 'string', default: 'demo' },
    seconds: { type: 'string', default: '60' },
    'server-cpus': { type: 'string' },
    'load-cpus': { type: 'string' },
  },
})
const { shape, out } = values
if (shape !== 'demo' && shape !== 'paper') {
  throw new RankError('INVALID_REQUEST', `--shape must be demo or paper, got ${shape}`)
}
const log = (line: string) => process.stderr.write(`${line}\n`)
const machine = describeMachine()
const scope = createScope()
try {
  const cpus = { server: values['server-cpus'], load: values['load-cpus'] }
  const what = SHAPES[shape](tempFolder(scope))
  const result = await benchOverload(what, cpus, Number(values.seconds), log)
  const parts = [
    'overload',
    ...(shape === 'paper' ? ['paper'] : []),
    ...(cpus.load ? ['apart'] : []),
  ]
  const name = parts.join('-')
  const page = overloadPage(machine, result, name)
  mkdirSync(out, { recursive: true })
  writeFileSync(`${out}/${name}.md`, page)
  writeFileSync(`${out}/${name}.svg`, overloadChart(machine, result))
  writeFileSync(`${out}/${name}.json`, `${JSON.stringify({ machine, ...result }, null, 2)}\n`)
  process.stdout.write(`${page}\n`)
} finally {
  await scope.end()
}
