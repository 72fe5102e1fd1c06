// engine-memory.js node|capi BUNDLE WORKERS: prints the MiB of anonymous memory that an engine takes.
import { readFileSync } from 'node:fs'
import { createCapiEngine } from '../model/engine/capi/engine.js'
import { createNodeEngine } from '../model/engine/node/pool.js'
import { openBundle } from '../model/manifest.js'
import { zeroTokens } from '../model/tokens.js'

const [name, folder = '', workers = '1'] = process.argv.slice(2)
const bundle = openBundle(folder)
const { slots } = bundle.manifest.embedding
const create = name === 'capi' ? createCapiEngine : createNodeEngine
const before = anonymousMiB()
const engine = await create({ bundle, workers: Number(workers) })
// Every worker has run every graph, on little: what remains is what an engine holds for its weights.
await engine.warmUp({ historyTokens: [16], candidates: [16] })
await engine.rank([
  { history: zeroTokens(16, slots), candidates: new Int32Array(slots), queryTime: 0 },
])
process.stdout.write(`${(anonymousMiB() - before).toFixed(0)}\n`)
await engine.close()

function anonymousMiB(): number {
  const rollup = readFileSync('/proc/self/smaps_rollup', 'utf8')
  return Number(/^Anonymous:\s+(\d+)/m.exec(rollup)?.[1] ?? Number.NaN) / 1024
}
