// npm run bench:overload -- [--shape demo|paper|full|stored] [--bundle DIR] [--seconds 60] [--out bench/results]
// [--server-cpus 0-3 --load-cpus 4-15 --generators 3] [--connections 2,4,8] [-- flags of peregrine serve]: open-loop
// overload at three times the capacity. With CPUs of their own, by taskset, neither the server nor its load takes time
// from the other. Needs dist, node_modules and demo/kuairand only.
import { mkdirSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { tempFolder } from '../test/fixtures.js'
import { describeMachine } from './machine.js'
import { benchOverload } from './overload/bench.js'
import { overloadChart, overloadPage } from './overload/report.js'
import { SHAPES, shapeName } from './overload/shapes.js'
import { createScope } from './scope.js'

const { values, positionals: flags } = parseArgs({
  allowPositionals: true,
  options: {
    out: { type: 'string', default: 'bench/results' },
    shape: { type: 'string', default: 'demo' },
    bundle: { type: 'string' },
    seconds: { type: 'string', default: '60' },
    generators: { type: 'string', default: '1' },
    connections: { type: 'string', default: '2,4,8,16,32,64' },
    'server-cpus': { type: 'string' },
    'load-cpus': { type: 'string' },
  },
})
const { shape, bundle, out } = values
const name = shapeName(shape)
const log = (line: string) => process.stderr.write(`${line}\n`)
const machine = describeMachine()
const scope = createScope()
try {
  const cpus = { server: values['server-cpus'], load: values['load-cpus'] }
  const connections = values.connections.split(',').map(Number)
  const setup = { cpus, generators: Number(values.generators), connections, flags }
  const what = SHAPES[name](tempFolder(scope), bundle)
  const result = await benchOverload(what, setup, Number(values.seconds), log)
  const parts = [
    'overload',
    ...(name === 'demo' ? [] : [name]),
    ...(flags.includes('cuda') ? ['cuda'] : []),
    ...(cpus.load ? ['apart'] : []),
  ]
  const file = parts.join('-')
  const page = overloadPage(machine, result, file)
  mkdirSync(out, { recursive: true })
  writeFileSync(`${out}/${file}.md`, page)
  writeFileSync(`${out}/${file}.svg`, overloadChart(machine, result))
  writeFileSync(`${out}/${file}.json`, `${JSON.stringify({ machine, ...result }, null, 2)}\n`)
  process.stdout.write(`${page}\n`)
} finally {
  await scope.end()
}
