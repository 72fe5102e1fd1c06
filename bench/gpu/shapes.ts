import { mkdirSync } from 'node:fs'
import { createReference } from '../../falcon/reference.js'
import { blockOf, type HstuConfig, parseConfig } from '../../model/config.js'
import { writeBundle } from '../../model/export/bundle.js'
import type { WeightSource } from '../../model/export/checkpoint.js'
import {
  PAPER_SHAPE,
  type RandomShape,
  randomConfig,
  randomWeights,
} from '../../model/export/random.js'
import type { Precision } from '../../model/manifest.js'

export type BenchShape = RandomShape & {
  readonly name: string
  /** Candidates per request. */
  readonly candidates: readonly number[]
}

/** The shapes that others publish figures for. */
export const SHAPES: readonly BenchShape[] = [
  // HSTU paper, section 4.2.
  { name: 'paper', ...PAPER_SHAPE, candidates: [256, 1024, 16_384] },
  // NVIDIA recsys-examples, its inference benchmark.
  {
    name: 'nvidia',
    layers: 8,
    dModel: 1024,
    heads: 4,
    maxTokens: 4096,
    items: 20_000,
    candidates: [256, 1024],
  },
  // MLPerf Inference DLRMv3: its dense part.
  {
    name: 'mlperf',
    layers: 5,
    dModel: 512,
    heads: 4,
    maxTokens: 7000,
    items: 20_000,
    candidates: [2048],
  },
]

/**
 * The layer that Meta's own kernels compute (STULayer of generative-recommenders): SiLU on u only,
 * queries scaled, no relative bias, [u, a, u·LN(a)] into the output projection.
 */
export function stuConfig(shape: RandomShape): HstuConfig {
  const config = randomConfig(shape)
  return parseConfig({
    ...config,
    name: `${config.name}-stu`,
    block: {
      silu: 'u',
      alpha: config.dqk ** -0.5,
      rab: false,
      combine: 'concat',
      uvqkBias: true,
      outBias: false,
    },
  })
}

/** The paper's layer without its relative bias: what that costs. */
export function withoutBias(shape: RandomShape): HstuConfig {
  const config = randomConfig(shape)
  return parseConfig({ ...config, name: `${config.name}-norab`, block: { rab: false } })
}

/** Exports a model of seeded random weights into `out`. */
export function exportShape(config: HstuConfig, out: string, precision: Precision): string {
  mkdirSync(out, { recursive: true })
  const source = randomWeights(config, 1)
  const createOracle = (weights: WeightSource) => createReference(weights, config)
  const folder = `${out}/${config.name}-${precision}`
  writeBundle({ config, source, folder: '.', out: folder, precision, createOracle })
  return folder
}

/**
 * Floating-point operations that one request cannot do without: linear layers of all tokens, half of
 * the causal square, every candidate against the history and itself. The last layer's history ends at
 * its K and V.
 */
export function usefulFlops(
  config: HstuConfig,
  what: 'rank' | 'score' | 'prefill',
  m: number,
): number {
  const { layers, dModel, heads, dqk, dv, maxTokens: n } = config
  const width = heads * dv
  const kv = 2 * dModel * heads * (dqk + dv)
  const uvqk = 2 * dModel * heads * (2 * dv + 2 * dqk)
  const out = 2 * (blockOf(config).combine === 'concat' ? 3 : 1) * width * dModel
  const pair = 2 * heads * (dqk + dv)
  const history = (layers - 1) * (n * (uvqk + out) + (n * (n + 1) * pair) / 2) + n * kv
  const candidates = layers * m * (uvqk + out + (n + 1) * pair)
  if (what === 'prefill') return history
  return what === 'score' ? candidates : history + candidates
}
