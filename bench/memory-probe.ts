// node dist/bench/memory-probe.js BUNDLE M B: prints the process's peak resident memory in MiB after
// ranking M candidates in micro-batches of B. A process per measurement, because a peak never falls.
import { openBundle } from '../model/manifest.js'
import { createLatencyRanker, randomRequest } from './workload.js'

const [folder = '', m = '', b = ''] = process.argv.slice(2)
const bundle = openBundle(folder)
const events = (bundle.manifest.config.maxTokens - 2) / 2
const ranker = await createLatencyRanker(bundle, 1, Number(b))
await ranker.rank(randomRequest('memory', events, Number(m)), { topK: 100 })
await ranker.close()
process.stdout.write(`${Math.round(process.resourceUsage().maxRSS / 1024)}\n`)
