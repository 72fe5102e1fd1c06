import { readFileSync } from 'node:fs'
import { show } from './check.js'
import { type Block, type Encoding, type Feature, invalid } from './config-schema.js'
import { type DlrmConfig, parseDlrm } from './dlrm-v3/config.js'
import { RankError } from './errors.js'
import { type PaperConfig, parsePaper } from './paper/config.js'
import { parseResearch, type ResearchConfig } from './research/config.js'

/** A categorical feature; its table's row 0 is what an unknown or missing value gets. */
export type ModelFeature = Omit<Feature, 'encoding'> & {
  /** `index`: the value is an integer in 0 .. rows-2 and its row the one behind. */
  readonly encoding?: Encoding | { readonly kind: 'index' }
  /** The table's name in the layout, where it is not the feature's own. */
  readonly table?: string
}

type Replaced = 'variant' | 'timeBuckets' | 'context' | 'itemFeatures'

/** What every model has, whichever variant it is of. */
export type ModelConfig = Omit<PaperConfig, Replaced> & {
  readonly context: readonly ModelFeature[]
  readonly itemFeatures: readonly ModelFeature[]
  readonly timeBuckets: number
  /** N, where it is not `maxTokens`. */
  readonly divisor?: number
  /** Present with a retrieval head; `candidates`: the file that lists its items, all of them when absent. */
  readonly retrieval?: { readonly candidates?: string }
  /** Tokens of one event; two, item and action, where absent. */
  readonly tokensPerEvent?: number
}

/**
 * A model's constants. `stated` is what its `config.json` says, where the rest follows from that; for
 * `paper` both are one.
 */
export type HstuConfig = ModelConfig &
  (
    | { readonly variant: 'paper' }
    | { readonly variant: 'research'; readonly stated: ResearchConfig }
    | { readonly variant: 'dlrm-v3'; readonly stated: DlrmConfig }
  )
export type Variant = HstuConfig['variant']
/** The config of one variant. */
export type ConfigOf<V extends Variant> = Extract<HstuConfig, { readonly variant: V }>

/** The constants of variant `paper` (spec section 1); `block` in a config overrides them one by one. */
const PAPER_BLOCK: Block = {
  silu: 'uvqk',
  alpha: 1,
  rab: true,
  normInAffine: true,
  normAttnAffine: true,
  combine: 'gate',
  uvqkBias: false,
  outBias: true,
}

export function blockOf(config: HstuConfig): Block {
  return { ...PAPER_BLOCK, ...config.block }
}

/** The item feature that a request's `item` is the value of. */
export function itemIdOf({ itemId = 'id' }: HstuConfig): string {
  return itemId
}

/** N: what attention weights are divided by. */
export function divisorOf({ divisor, maxTokens }: ModelConfig): number {
  return divisor ?? maxTokens
}

/** What `config.json` says: it gives the same config when it is parsed again. */
export function statedOf(config: HstuConfig): object {
  return 'stated' in config ? config.stated : config
}

const PARSERS: { readonly [V in Variant]: (value: unknown) => HstuConfig } = {
  paper: parsePaper,
  research: parseResearch,
  'dlrm-v3': parseDlrm,
}

/**
 * A checked config, of the variant that it names.
 * @throws {RankError} CONFIG_INVALID with the JSON pointer of the first fault
 */
export function parseConfig(value: unknown): HstuConfig {
  const named = typeof value === 'object' && value !== null && Object.hasOwn(value, 'variant')
  const variant: unknown = named ? Reflect.get(value, 'variant') : 'paper'
  if (!isVariant(variant)) {
    const known = Object.keys(PARSERS).map(show).join(', ')
    throw invalid('/variant', `must be one of ${known}, got ${show(variant)}`)
  }
  return PARSERS[variant](value)
}

export function isVariant(name: unknown): name is Variant {
  return typeof name === 'string' && Object.hasOwn(PARSERS, name)
}

/** @throws {RankError} CONFIG_INVALID when the file is missing, no JSON or no config */
export function readConfig(file: string): HstuConfig {
  return parseConfig(readJson(file, 'CONFIG_INVALID'))
}

type JsonCode = 'CONFIG_INVALID' | 'BUNDLE_INVALID' | 'WEIGHTS_INVALID'

/** A parsed JSON file; a fault carries `code` and the file's name. */
export function readJson(file: string, code: JsonCode): unknown {
  try {
    return JSON.parse(readFileSync(file, 'utf8'))
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RankError(code, `cannot read ${file} as JSON: ${why}`, { cause })
  }
}
