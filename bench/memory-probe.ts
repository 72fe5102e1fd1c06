// node dist/bench/memory-probe.js BUNDLE M B: prints the process's peak resident memory in MiB after
// ranking M candidates in micro-batches of B. A process per measurement, because a peak never falls.
import { readFileSync } from 'node:fs'
import { openBundle } from '../model/manifest.js'
import { createLatencyRanker, randomRequest } from './workload.js'

const [folder = '', m = '', b = ''] = process.argv.slice(2)
const bundle = openBundle(folder)
const events = (bundle.manifest.config.maxTokens - 2) / 2
const ranker = await createLatencyRanker(bundle, 1, Number(b))
await ranker.rank(randomRequest('memory', events, Number(m)), { topK: 100 })
await ranker.close()
// VmHWM, not getrusage: the latter's maximum includes the parent's from before exec.
const peak = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8'))
process.stdout.write(`${Math.round(Number(peak?.[1] ?? Number.NaN) / 1024)}\n`)
