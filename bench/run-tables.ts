// npm run bench:tables -- [--out bench/results] [--dir DIR] [--most 10000000]: large embedding tables.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { parseArgs } from 'node:util'
import { describeMachine } from './machine.js'
import { tablesChart, tablesPage } from './tables/report.js'
import { benchTables } from './tables/tables.js'

const { values } = parseArgs({
  options: {
    out: { type: 'string', default: 'bench/results' },
    // Needs 4 GB.
    dir: { type: 'string', default: tmpdir() },
    most: { type: 'string', default: '10000000' },
  },
})
const machine = describeMachine()
const folder = mkdtempSync(`${values.dir}/peregrine-tables-`)
try {
  const result = await benchTables(folder, Number(values.most), (line) =>
    process.stderr.write(`${line}\n`),
  )
  mkdirSync(values.out, { recursive: true })
  writeFileSync(`${values.out}/tables.json`, `${JSON.stringify({ machine, ...result }, null, 2)}\n`)
  writeFileSync(`${values.out}/tables.md`, tablesPage(machine, result))
  writeFileSync(`${values.out}/tables.svg`, tablesChart(machine, result))
} finally {
  rmSync(folder, { recursive: true, force: true })
}
