// node dist/bench/tables/serve-probe.js capi|node BUNDLE ITEMS: opens a bundle as a server does, ranks requests of
// 2,048 candidates from all over the table, prints how long the start took; then its memory for every line on stdin.
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { loadRanker } from '../../falcon/load.js'
import { createRandom } from '../../model/random.js'
import { memoryMiB, requestOver } from './model.js'

const REQUESTS = 300
const CANDIDATES = 2048

const [engine, bundle = '', items = ''] = process.argv.slice(2)
const start = performance.now()
const ranker = await loadRanker({
  ...{ bundle, engine: engine === 'node' ? 'node' : 'capi' },
  ...{ workers: 1, threadsPerWorker: 1, microBatchSize: 512 },
})
const startMs = performance.now() - start
const random = createRandom(process.pid)
for (let i = 0; i < REQUESTS; i++) {
  const request = requestOver(Number(items), `user-${i % 20}`, CANDIDATES, random)
  const { warnings } = await ranker.rank(request, { topK: 10 })
  if (warnings.length > 0) throw new Error(`unexpected warning ${warnings[0]?.message}`)
}
process.stdout.write(`${JSON.stringify({ startMs })}\n`)
for await (const _ of createInterface({ input: process.stdin })) {
  const smaps = readFileSync('/proc/self/smaps', 'utf8')
  const all = memoryMiB(readFileSync('/proc/self/smaps_rollup', 'utf8'))
  process.stdout.write(`${JSON.stringify({ ...all, table: ofFile(smaps, /weights\.bin$/) })}\n`)
}
await ranker.close()

/** MiB of the mappings of one file: what of it is here, and its share where others have the same pages. */
function ofFile(smaps: string, name: RegExp) {
  const total = { rss: 0, pss: 0, copied: 0 }
  let isOwn = false
  for (const line of smaps.split('\n')) {
    const [first = '', second = ''] = line.split(/\s+/)
    if (/^[0-9a-f]+-[0-9a-f]+$/.test(first)) isOwn = name.test(line)
    if (!isOwn) continue
    const mib = Number(second) / 1024
    if (first === 'Rss:') total.rss += mib
    if (first === 'Pss:') total.pss += mib
    if (first === 'Anonymous:') total.copied += mib
  }
  return total
}
