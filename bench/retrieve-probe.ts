// node dist/bench/retrieve-probe.js BUNDLE CHUNK_ITEMS: prints the process's peak resident memory in MiB,
// without mapped files, after retrievals in parts of CHUNK_ITEMS.
import { readFileSync } from 'node:fs'
import { createRanker } from '../falcon/rank.js'
import { createEngine } from '../model/engine/create.js'
import { openBundle } from '../model/manifest.js'
import { requestOf } from './retrieve.js'

const [folder = '', size = ''] = process.argv.slice(2)
// Hashing the files would read them into buffers: not what is measured.
const bundle = openBundle(folder, { filesAreChecked: true })
const engine = await createEngine({ bundle, workers: 1, threadsPerWorker: 1 })
const options = { engine, bundle, microBatchSize: 256, maxKvBytes: 2 ** 28 }
const ranker = createRanker({ ...options, chunkItems: Number(size) })
const input = requestOf(ranker.model.retrieval?.items ?? 1)
for (let i = 0; i < 5; i++) await ranker.retrieve(input, { topK: 100 })
const status = readFileSync('/proc/self/status', 'utf8')
const kB = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)?.[1])
process.stdout.write(`${Math.round((kB('VmHWM') - kB('RssFile')) / 1024)}\n`)
await ranker.close()
