// node dist/bench/gpu/table-check.js --out DIR: an embedding table that stays on the host gives the scores of one
// that is on the GPU, and takes none of its memory; in float16, and in int8 rows that are decoded there.
import { mkdirSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { randomHistory, randomRows } from '../../falcon/calibrate.js'
import { createReference } from '../../falcon/reference.js'
import { largestDifference, verifyBundle } from '../../falcon/verify.js'
import { createCapiEngine } from '../../model/engine/capi/engine.js'
import type { EngineEvent } from '../../model/engine/engine.js'
import { writeBundle } from '../../model/export/bundle.js'
import type { WeightSource } from '../../model/export/checkpoint.js'
import { randomConfig, randomWeights } from '../../model/export/random.js'
import type { TableType } from '../../model/export/table.js'
import { openBundle } from '../../model/manifest.js'
import { createRandom } from '../../model/random.js'
import { quantile } from '../stats.js'
import { QUERY_TIME } from '../workload.js'

const { values } = parseArgs({
  options: {
    out: { type: 'string' },
    rows: { type: 'string', default: '500000' },
    // cpu: whether the script itself works.
    provider: { type: 'string', default: 'cuda' },
    runs: { type: 'string', default: '50' },
  },
})
if (values.out === undefined) throw new Error('expected --out DIR')
const out = values.out
mkdirSync(out, { recursive: true })
const log = (line: string) => process.stdout.write(`${line}\n`)
const config = randomConfig({
  ...{ layers: 2, dModel: 256, heads: 4, maxTokens: 1024 },
  items: Number(values.rows),
})
const source = randomWeights(config, 1)

async function check(table: TableType) {
  const folder = `${out}/bundle-${table}`
  const createOracle = (weights: WeightSource) => createReference(weights, config)
  writeBundle({ config, source, folder: '.', out: folder, precision: 'fp16', table, createOracle })
  const bundle = openBundle(folder)
  const random = createRandom(3)
  const history = randomHistory(bundle.manifest, config.maxTokens, random)
  const candidates = randomRows(bundle.manifest, 1024, random)
  const user = { history, candidates, queryTime: QUERY_TIME }
  const logits: Float32Array[] = []
  for (const where of ['gpu', 'host'] as const) {
    const events: EngineEvent[] = []
    const start = performance.now()
    const engine = await createCapiEngine({
      ...{ bundle, workers: 1, gpuKvBytes: 2 ** 28 },
      provider: values.provider === 'cpu' ? 'cpu' : 'cuda',
      ...(where === 'host' && { gpuTableBytes: 0 }),
      onEvent: (event) => events.push(event),
    })
    const startMs = performance.now() - start
    try {
      const { maxDifference, tolerance } = await verifyBundle(engine, bundle)
      const times: number[] = []
      for (let run = 0; run < Number(values.runs); run++) {
        const begin = performance.now()
        const [scores] = await engine.rank([user])
        times.push(performance.now() - begin)
        if (run === 0 && scores !== undefined) logits.push(scores)
      }
      const host = events.find(({ kind }) => kind === 'hostTable')
      if (values.provider !== 'cpu' && (host !== undefined) !== (where === 'host')) {
        throw new Error(`expected the table on the ${where}, got ${JSON.stringify(events)}`)
      }
      results.push({
        ...{ table, where, startMs, maxDifference, tolerance },
        rankMs: quantile(times, 0.5),
        gpuUsedBytes: engine.gpuMemory?.()?.usedBytes,
        ...(host?.kind === 'hostTable' && { tableBytes: host.bytes, isCopy: host.isCopy }),
      })
      log(JSON.stringify(results.at(-1)))
    } finally {
      await engine.close()
    }
  }
  const [onGpu = new Float32Array(0), onHost = new Float32Array(1)] = logits
  const difference = largestDifference(onHost, onGpu)
  log(`${table}: host against GPU ${difference.toExponential(2)}`)
  if (difference > 0) throw new Error(`${table}: expected equal logits, got ${difference} apart`)
}

const results: object[] = []
for (const table of ['fp16', 'int8'] as const) await check(table)
writeFileSync(`${out}/tables.json`, `${JSON.stringify(results, null, 2)}\n`)
log('PASS')
