import type { Engine } from '../model/engine/engine.js'
import type { Manifest } from '../model/manifest.js'
import type { MeasuredCosts } from './calibrate.js'

/**
 * What runs of a shape cost on this machine, by `shapeKey`. A new version of a model mostly has the
 * shape of the one before, and is then not measured again beside live traffic.
 */
export type Measurements = Map<
  string,
  { readonly microBatchSize: number; readonly costs: MeasuredCosts }
>

/** All that decides what runs cost; the sizes of vocabularies do not. */
export function shapeKey(engine: Engine, manifest: Manifest, options: object): string {
  const { precision, config, embedding } = manifest
  const { dModel, heads, dqk, dv, layers, maxTokens, headHidden, block } = config
  return JSON.stringify([
    [engine.name, engine.stats().kernels?.library, options],
    [precision, dModel, heads, dqk, dv, layers, maxTokens, headHidden, block],
    [embedding.slots, config.context.length, config.actions.length, config.tasks.length],
  ])
}
