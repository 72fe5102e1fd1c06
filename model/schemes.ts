import type { HstuConfig } from './config.js'
import { dlrmScheme } from './dlrm-v3/tokens.js'
import type { EmbeddingLayout } from './embedding.js'
import { paperScheme } from './paper/tokens.js'
import { researchScheme } from './research/tokens.js'
import type { TokenScheme } from './scheme.js'

/** The one place that chooses a variant's tokens. */
export function tokenScheme(config: HstuConfig): TokenScheme {
  switch (config.variant) {
    case 'paper':
      return paperScheme(config)
    case 'research':
      return researchScheme(config)
    case 'dlrm-v3':
      return dlrmScheme(config)
  }
}

export function embeddingLayout(config: HstuConfig): EmbeddingLayout {
  return tokenScheme(config).layout
}
