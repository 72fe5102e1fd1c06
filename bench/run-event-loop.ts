// npm run bench:event-loop -- [--dist OTHER/dist,dist] [--shape full,stored] [--requests 200]: microseconds of the
// server's main thread per ranking of 1,024 candidates, of several builds in turns. Linux only.
import { resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { integer } from '../server/commands/flags.js'
import { tempFolder } from '../test/fixtures.js'
import { benchEventLoop, exportTinyModel } from './event-loop.js'
import { figure, table } from './markdown.js'
import { SHAPES, shapeName } from './overload/shapes.js'
import { createScope } from './scope.js'

const { values } = parseArgs({
  options: {
    dist: { type: 'string', default: 'dist' },
    shape: { type: 'string', default: 'full,stored' },
    requests: { type: 'string', default: '200' },
  },
})
const names = values.shape.split(',').map(shapeName)
const requests = integer('--requests', values.requests, 1, 1_000_000)
const dists = values.dist.split(',').map((dist) => resolve(dist))
const scope = createScope()
try {
  const bundle = exportTinyModel(`${tempFolder(scope)}/bundle`)
  for (const name of names) {
    const shape = SHAPES[name](tempFolder(scope), bundle)
    const results = await benchEventLoop(shape, dists, requests)
    const [first] = results
    const rows = results.map(({ dist, us, leastUs, mostUs }) => [
      ...[dist, figure(us), `${figure(leastUs)}–${figure(mostUs)}`],
      figure(us / (first?.us ?? Number.NaN)),
    ])
    const lines = table(['build', 'us per request', 'rounds', 'of the first'], rows)
    process.stdout.write(`${shape.what}\n\n${lines.join('\n')}\n\n`)
  }
} finally {
  await scope.end()
}
