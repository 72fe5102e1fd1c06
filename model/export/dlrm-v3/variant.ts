import type { ConfigOf } from '../../config.js'
import { tensorsOf } from '../checkpoint.js'
import { TABLE } from '../table.js'
import type { ExportVariant } from '../variant.js'
import { dlrmGraphs } from './graphs.js'
import { randomDlrm } from './tensors.js'
import { dlrmWeights } from './weights.js'

/** The ranking model of upstream's `DlrmHSTU`, which MLPerf's DLRM-v3 is one of. */
export function dlrmVariant(config: ConfigOf<'dlrm-v3'>): ExportVariant {
  return {
    checkpoint: (source) => dlrmWeights(source, config),
    tensors: tensorsOf,
    random: (seed) => dlrmWeights(randomDlrm(config, seed), config),
    table: { names: [TABLE], factor: 1 },
    graphs: dlrmGraphs(config),
  }
}
