// npm run bench:retrieve -- [--items 10000,100000,1000000] [--runs N] [--out bench/results]
import { mkdirSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { describeMachine } from './machine.js'
import { retrieveChart, retrievePage } from './report-retrieve.js'
import { benchRetrieve, type RetrievePoint } from './retrieve.js'
import { createScope } from './scope.js'

const { values } = parseArgs({
  options: {
    items: { type: 'string', default: '10000,100000,1000000' },
    /** Of the largest list; smaller ones more, in proportion, up to ten times as many. */
    runs: { type: 'string', default: '50' },
    out: { type: 'string', default: 'bench/results' },
  },
})
const machine = describeMachine()
const sizes = values.items.split(',').map(Number)
const largest = Math.max(...sizes)
const points: RetrievePoint[] = []
for (const items of sizes) {
  const scope = createScope()
  try {
    const runs = Number(values.runs) * Math.min(10, largest / items)
    const log = (line: string) => process.stderr.write(`${line}\n`)
    points.push(await benchRetrieve(scope, items, Math.round(runs), log))
  } finally {
    await scope.end()
  }
}
mkdirSync(values.out, { recursive: true })
const result = { machine, points }
writeFileSync(`${values.out}/retrieve.json`, `${JSON.stringify(result, null, 2)}\n`)
writeFileSync(`${values.out}/retrieve.md`, retrievePage(machine, points))
writeFileSync(`${values.out}/retrieve.svg`, retrieveChart(machine, points))
