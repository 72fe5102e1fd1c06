import { blockOf, type HstuConfig } from '../config.js'
import { embeddingLayout } from '../schemes.js'
import {
  checkTensors,
  type MadeTensor,
  readFinite,
  scaled,
  sourceOf,
  tableOf,
  tensorsOf,
  type WeightSource,
} from './checkpoint.js'
import type { Tensor } from './weight-file.js'

/** Every weight of a `paper` model and its shape; matrices are (in, out), tables (rows, D). */
export function weightShapes(config: HstuConfig): Map<string, readonly number[]> {
  const { dModel: d, heads, dqk, dv, headHidden } = config
  const block = blockOf(config)
  const uvqk = 2 * heads * (dqk + dv)
  const gated = (block.combine === 'concat' ? 3 : 1) * heads * dv
  const shapes = new Map<string, readonly number[]>()
  for (const { name, rows } of embeddingLayout(config).tables)
    shapes.set(`${name}.weight`, [rows, d])
  shapes.set('action.weight', [config.actions.length, d]).set('action_base', [d])
  for (let i = 0; i < config.layers; i++) {
    const set = (name: string, dims: readonly number[]) => shapes.set(`layers.${i}.${name}`, dims)
    if (block.normInAffine) set('norm_in.weight', [d]).set(`layers.${i}.norm_in.bias`, [d])
    set('uvqk.weight', [d, uvqk])
    if (block.uvqkBias) set('uvqk.bias', [uvqk])
    if (block.normAttnAffine) {
      set('norm_attn.weight', [heads * dv])
      set('norm_attn.bias', [heads * dv])
    }
    set('out.weight', [gated, d])
    if (block.outBias) set('out.bias', [d])
    if (block.rab) {
      set('pos_w', [config.positions])
      set('time_w', [config.timeBuckets])
    }
  }
  shapes.set('head.norm.weight', [d]).set('head.norm.bias', [d])
  shapes.set('head.fc1.weight', [d, headHidden]).set('head.fc1.bias', [headHidden])
  shapes.set('head.fc2.weight', [headHidden, config.tasks.length])
  shapes.set('head.fc2.bias', [config.tasks.length])
  return shapes
}

/**
 * A source whose tensors are exactly those that the config needs.
 * @throws {RankError} WEIGHTS_INVALID naming the tensor that is missing, too many or misshaped
 */
export function checkWeights(source: WeightSource, config: HstuConfig): WeightSource {
  checkTensors(source, weightShapes(config))
  return source
}

/**
 * The tensors of the bundle's weight file, in file order, read when they are written. Context, item and
 * auxiliary tables become one `embedding` behind a zero row, action types and base one `action`;
 * both are stored times sqrt(D), the scale that every token's sum is multiplied by.
 * @throws {RankError} WEIGHTS_INVALID at a value that is not finite, as it is read
 */
export function bundleTensors(source: WeightSource, config: HstuConfig): Map<string, Tensor> {
  const d = config.dModel
  const factor = Math.sqrt(d)
  const layout = embeddingLayout(config)
  const parts = layout.tables.map(({ name, offset: at }) => ({
    name: `${name}.weight`,
    at,
    factor,
  }))
  const action = () => {
    const rows = new Float32Array((config.actions.length + 1) * d)
    rows.set(scaled(readFinite(source, 'action.weight'), factor))
    rows.set(scaled(readFinite(source, 'action_base'), factor), config.actions.length * d)
    return rows
  }
  const made = new Map<string, MadeTensor>([
    ['embedding', tableOf(source, parts, layout, d)],
    ['action', { dims: [config.actions.length + 1, d], read: action }],
  ])
  for (const [name, dims] of weightShapes(config)) {
    if (!/^(layers|head)\./.test(name)) continue
    made.set(name, { dims, read: () => readFinite(source, name) })
  }
  return tensorsOf(sourceOf(made))
}
