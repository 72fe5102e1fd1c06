// node dist/bench/tables/export-probe.js FOLDER ITEMS TABLE: exports a model with so many items from a checkpoint of
// random weights and FOLDER's list of ids; prints seconds and the process's peak of anonymous memory in MiB.
import { readFileSync } from 'node:fs'
import { createReference } from '../../falcon/reference.js'
import { writeBundle } from '../../model/export/bundle.js'
import { parseTable } from '../../model/export/table.js'
import { exportVariant } from '../../model/export/variants.js'
import { tableConfig } from './model.js'

const [folder = '', items = '', table = ''] = process.argv.slice(2)
const config = tableConfig(Number(items))
const source = exportVariant(config).random(1)
const start = performance.now()
writeBundle({
  ...{ config, source, folder, out: `${folder}/${items}-${table}`, precision: 'fp32' },
  table: parseTable(table, 'fp32'),
  createOracle: (weights) => createReference(weights, config),
})
const seconds = (performance.now() - start) / 1000
const peak = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8'))
const peakMiB = Number(peak?.[1] ?? Number.NaN) / 1024
process.stdout.write(`${JSON.stringify({ seconds, peakMiB })}\n`)
