// npm run bench:kv -- [--out bench/results]: K/V in this process and in Redis, on this CPU.
import { mkdirSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { openBundle } from '../model/manifest.js'
import { DEMO_BUNDLE, ensureDemoBundle } from '../server/commands/demo.js'
import { tempFolder } from '../test/fixtures.js'
import { benchCodecs } from './kv-codecs.js'
import { benchEventLoop } from './kv-event-loop.js'
import { benchLatency } from './kv-latency.js'
import { benchReaders } from './kv-readers.js'
import { benchStages } from './kv-stages.js'
import { describeMachine } from './machine.js'
import { startBenchRedis } from './redis.js'
import { writeKvReport } from './report-kv.js'
import { createScope } from './scope.js'
import { exportPaperShape } from './workload.js'

const PAPER_LENGTHS = [16, 64, 128, 512, 1024, 2048]
const DEMO_LENGTHS = [16, 64, 128, 256, 512]

const { values } = parseArgs({
  options: {
    out: { type: 'string', default: 'bench/results' },
    requests: { type: 'string', default: 'demo/kuairand/requests' },
  },
})
const log = (line: string) => process.stderr.write(`${line}\n`)
const machine = describeMachine()
const scope = createScope()
try {
  const folder = tempFolder(scope)
  const redis = await startBenchRedis(scope)
  log('exporting the paper shape with random weights')
  const paper = exportPaperShape(`${folder}/paper`)
  ensureDemoBundle(DEMO_BUNDLE)
  const demo = openBundle(DEMO_BUNDLE)
  const latency = [
    await benchLatency(paper, PAPER_LENGTHS, redis, log),
    await benchLatency(demo, DEMO_LENGTHS, redis, log),
  ]
  const stages = await benchStages(paper, redis, log)
  const codecs = await benchCodecs(paper, demo, values.requests, redis, log)
  const readers = await benchReaders(paper, redis, log)
  const eventLoop = await benchEventLoop(paper, redis, log)
  const result = {
    machine,
    redis: redis.version,
    latency,
    stages,
    codecs,
    readers,
    eventLoop,
    seconds: Math.round(performance.now() / 1000),
  }
  mkdirSync(values.out, { recursive: true })
  writeFileSync(`${values.out}/kv.json`, `${JSON.stringify(result, null, 2)}\n`)
  writeKvReport(result, values.out)
  log(`written to ${values.out} after ${result.seconds} s`)
} finally {
  await scope.end()
}
