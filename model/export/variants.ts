import type { HstuConfig } from '../config.js'
import type { WeightSource } from './checkpoint.js'
import { dlrmVariant } from './dlrm-v3/variant.js'
import { paperVariant } from './paper/variant.js'
import { researchVariant } from './research/variant.js'
import { openCheckpoint } from './shards.js'
import type { ExportVariant } from './variant.js'

/** The one place that chooses a variant's exporter. */
export function exportVariant(config: HstuConfig): ExportVariant {
  switch (config.variant) {
    case 'paper':
      return paperVariant(config)
    case 'research':
      return researchVariant(config)
    case 'dlrm-v3':
      return dlrmVariant(config)
  }
}

/** Opens a model's safetensors, in one file or several, and checks it against its config. The caller closes it. */
export function openWeights(file: string, config: HstuConfig): WeightSource & { close(): void } {
  const source = openCheckpoint(file)
  try {
    return { ...exportVariant(config).checkpoint(source), close: source.close }
  } catch (error) {
    source.close()
    throw error
  }
}
