import { existsSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { createReference } from '../../falcon/reference.js'
import { isVariant, readConfig } from '../../model/config.js'
import { RankError } from '../../model/errors.js'
import { type ExportOptions, writeBundle } from '../../model/export/bundle.js'
import { RANDOM_MODELS } from '../../model/export/random-models.js'
import { parseTable, type TableType } from '../../model/export/table.js'
import { exportVariant, openWeights } from '../../model/export/variants.js'
import type { Manifest, Precision } from '../../model/manifest.js'
import { openBundle } from '../../model/manifest.js'
import { integer } from './flags.js'
import { largeOnes } from './progress.js'

export const EXPORT_HELP = `peregrine export --from DIR --out DIR [--precision fp32|fp16] [--table fp32|fp16|int8]
    DIR holds config.json, weights.safetensors and the vocabularies that the config names; --table is what embedding
    rows are stored as, the precision where absent
peregrine export --random --out DIR [--variant paper|research|dlrm-v3] [--layers L] [--d-model D] [--heads H]
                 [--max-tokens N] [--items ROWS] [--seed 1] [--precision fp32|fp16] [--table fp32|fp16|int8]
    seeded random weights at any shape, for benches; the defaults are the HSTU paper's ranking model, the research
    code's large model for ML-1M, MLPerf's DLRM-v3 with 7,000 events`

/** Tensors of so many numbers take seconds: their progress is shown. */
const LARGE = 2 ** 24

/** Writes a bundle from a trained model's folder, or with random weights. */
export function exportCommand(args: string[]): number {
  const { values } = parseArgs({
    args,
    options: {
      from: { type: 'string' },
      out: { type: 'string' },
      precision: { type: 'string', default: 'fp32' },
      table: { type: 'string' },
      random: { type: 'boolean', default: false },
      variant: { type: 'string', default: 'paper' },
      layers: { type: 'string' },
      'd-model': { type: 'string' },
      heads: { type: 'string' },
      'max-tokens': { type: 'string' },
      items: { type: 'string' },
      seed: { type: 'string', default: '1' },
    },
  })
  const { from, out } = values
  if (out === undefined || (from === undefined) !== values.random) {
    throw new RankError(
      'INVALID_REQUEST',
      `export needs --out and either --from or --random\n${EXPORT_HELP}`,
    )
  }
  const precision = parsePrecision(values.precision)
  const table = parseTable(values.table ?? precision, precision)
  const start = performance.now()
  const manifest =
    from === undefined
      ? exportRandom(values, out, precision, table)
      : exportBundle(from, out, precision, table)
  // What was written is read back as a server would: hashes, config, vocabularies.
  openBundle(out)
  const seconds = ((performance.now() - start) / 1000).toFixed(1)
  process.stdout.write(
    `${manifest.name}@${manifest.version} ${precision}, ${Object.keys(manifest.files).length} files in ${out}, ${seconds} s\n`,
  )
  return 0
}

/** Exports the model in folder `from`. */
export function exportBundle(
  from: string,
  out: string,
  precision: Precision,
  table: TableType = precision,
): Manifest {
  const config = readConfig(`${from}/config.json`)
  const source = openWeights(`${from}/weights.safetensors`, config)
  try {
    return write({ config, source, folder: from, out, precision, table })
  } finally {
    source.close()
  }
}

type RandomFlags = { readonly variant: string; readonly seed: string } & {
  readonly [F in 'layers' | 'd-model' | 'heads' | 'max-tokens' | 'items']?: string
}

/** With a bar while tables are written, and a word on what their rows' type costs. */
function write(
  options: Omit<ExportOptions, 'createOracle'> & { readonly table: TableType },
): Manifest {
  const { config, table } = options
  return writeBundle({
    ...options,
    createOracle: (weights) => createReference(weights, config),
    onWritten: largeOnes('export', LARGE),
    onTableError(most) {
      process.stdout.write(
        `${table} table: logits of the sample requests within ${most.toExponential(1)} of those with float32 rows\n`,
      )
    },
  })
}

function exportRandom(
  flags: RandomFlags,
  out: string,
  precision: Precision,
  table: TableType,
): Manifest {
  const { variant } = flags
  if (!isVariant(variant)) {
    const known = Object.keys(RANDOM_MODELS).join(', ')
    throw new RankError('INVALID_REQUEST', `--variant must be one of ${known}, got ${variant}`)
  }
  const { shape, config: configOf } = RANDOM_MODELS[variant]
  const count = (name: keyof typeof flags, otherwise: number, most: number, least = 1) =>
    integer(`--${name}`, flags[name] ?? String(otherwise), least, most)
  const dModel = count('d-model', shape.dModel, 16_384)
  const heads = count('heads', shape.heads, 256)
  if (dModel % heads !== 0) {
    throw new RankError(
      'INVALID_REQUEST',
      `--d-model must be a multiple of --heads, got ${dModel} and ${heads}`,
    )
  }
  const config = configOf({
    layers: count('layers', shape.layers, 256),
    dModel,
    heads,
    maxTokens: count('max-tokens', shape.maxTokens, 1_048_576),
    items: count('items', shape.items, 2 ** 31 - 1, 2),
  })
  const seed = integer('--seed', flags.seed, 0, 2 ** 31 - 1)
  const source = exportVariant(config).random(seed)
  return write({ config, source, folder: '.', out, precision, table })
}

export function parsePrecision(value: string): Precision {
  if (value === 'fp32' || value === 'fp16') return value
  throw new RankError('INVALID_REQUEST', `--precision must be fp32 or fp16, got ${value}`)
}

/** @throws {RankError} INVALID_REQUEST naming the folder that a command cannot do without */
export function needFolder(folder: string | undefined, usage: string): string {
  if (folder === undefined) throw new RankError('INVALID_REQUEST', usage)
  if (!existsSync(folder)) throw new RankError('INVALID_REQUEST', `no such folder: ${folder}`)
  return folder
}
