import { show } from '../../check.js'
import type { ConfigOf } from '../../config.js'
import { RankError } from '../../errors.js'
import { embeddingLayout } from '../../schemes.js'
import {
  checkTensors,
  finiteRows,
  type MadeTensor,
  readFinite,
  sourceOf,
  tableOf,
  transposed,
  type WeightSource,
  withoutPrefix,
} from '../checkpoint.js'
import { dlrmTensors, MLPS, NAMES, PERIODS, tableName } from './tensors.js'

/**
 * Upstream's state dict as graphs and oracle read it: tables in one, each behind a row of zeros; a zero
 * matrix before the context slots' own; matrices (in, out); the postprocessor's combiner in two parts, of
 * tokens and of the time features.
 * @throws {RankError} WEIGHTS_INVALID naming the tensor that does not fit
 */
export function dlrmWeights(checkpoint: WeightSource, config: ConfigOf<'dlrm-v3'>): WeightSource {
  const all = withoutPrefix(checkpoint, () => false)
  checkBuffers(all, config)
  const source = withoutPrefix(checkpoint, (name) => isIgnored(name, config))
  const tensors = dlrmTensors(config)
  const shapes = new Map(tensors.map(({ name, dims }) => [name, dims]))
  checkTensors(source, shapes)
  const read = (name: string) => readFinite(source, name)
  const made = new Map<string, MadeTensor>()
  const make = (name: string, dims: readonly number[], values: () => Float32Array) =>
    made.set(name, { dims, read: values })
  const same = (name: string, from: string) =>
    made.set(name, {
      dims: shapes.get(from) ?? [],
      read: () => read(from),
      readRows: (start, end) => finiteRows(source, from, start, end),
    })
  const turned = (name: string, from: string) => {
    const [out = 0, inputs = 0] = shapes.get(from) ?? []
    make(name, [inputs, out], () => transposed(read(from), out, inputs))
  }
  const { stated, dModel: d } = config
  const { tableDim, actionDim, actionWeights } = stated
  const layout = embeddingLayout(config)
  const parts = layout.tables.map(({ name, offset }) => ({ name: tableName(name), at: offset + 1 }))
  made.set('embedding', tableOf(source, parts, layout, tableDim))
  same('position', NAMES.position)
  same('time', NAMES.time)
  const slots = config.context.length
  if (slots > 0) {
    const behindZeros = (name: string, from: string, dims: readonly number[]) =>
      make(name, [slots + 1, ...dims], () => {
        const values = new Float32Array((slots + 1) * dims.reduce((size, dim) => size * dim, 1))
        values.set(read(from), values.length / (slots + 1))
        return values
      })
    behindZeros('context.weight', NAMES.contextWeight, [tableDim, d])
    behindZeros('context.bias', NAMES.contextBias, [d])
  }
  for (const [name, from] of Object.entries(MLPS)) {
    if (!shapes.has(`${from}.0.weight`)) continue
    for (const part of ['0', '2']) turned(`${name}.${part}.weight`, `${from}.${part}.weight`)
    for (const part of ['1', '3']) {
      if (shapes.has(`${from}.${part}.weight`))
        same(`${name}.${part}.weight`, `${from}.${part}.weight`)
    }
    for (const part of ['0', '1', '2', '3']) {
      if (shapes.has(`${from}.${part}.bias`)) same(`${name}.${part}.bias`, `${from}.${part}.bias`)
    }
  }
  same('action_table', NAMES.actionTable)
  make('target_action', [1, actionWeights.length * actionDim], () => read(NAMES.targetAction))
  const combiner = () => transposed(read(NAMES.combinerWeight), d, d + 4)
  make('post.rows.weight', [d, d], () => combiner().slice(0, d * d))
  make('post.time.weight', [4, d], () => combiner().slice(d * d))
  same('post.bias', NAMES.combinerBias)
  same('post.norm.weight', NAMES.postNormWeight)
  same('post.norm.bias', NAMES.postNormBias)
  for (let i = 0; i < config.layers; i++) {
    const from = NAMES.layer(i)
    same(`layers.${i}.norm_in.weight`, `${from}._input_norm_weight`)
    same(`layers.${i}.norm_in.bias`, `${from}._input_norm_bias`)
    same(`layers.${i}.uvqk.weight`, `${from}._uvqk_weight`)
    same(`layers.${i}.uvqk.bias`, `${from}._uvqk_beta`)
    same(`layers.${i}.norm_attn.weight`, `${from}._output_norm_weight`)
    same(`layers.${i}.norm_attn.bias`, `${from}._output_norm_bias`)
    same(`layers.${i}.out.weight`, `${from}._output_weight`)
  }
  return sourceOf(made)
}

/** Buffers, and what a model without extra item features has and never uses, zero-size weight included. */
function isIgnored(name: string, config: ConfigOf<'dlrm-v3'>): boolean {
  const { actionWeights, periodUnits, unitsPerPeriod } = NAMES
  if ([actionWeights, periodUnits, unitsPerPeriod].includes(name)) return true
  return config.stated.extraItemFeatures.length === 0 && name.startsWith(`${MLPS.extra}.`)
}

/** Buffers state constants: where they are there, they must be those that the model is exported with. */
function checkBuffers(source: WeightSource, { stated }: ConfigOf<'dlrm-v3'>): void {
  const expected: readonly (readonly [string, readonly number[]])[] = [
    [NAMES.actionWeights, stated.actionWeights],
    [NAMES.periodUnits, PERIODS.map(({ seconds }) => seconds)],
    [NAMES.unitsPerPeriod, PERIODS.map(({ count }) => count)],
  ]
  for (const [name, values] of expected) {
    if (!source.names.includes(name)) continue
    const got = [...source.read(name)]
    if (got.join() !== values.join()) {
      throw new RankError(
        'WEIGHTS_INVALID',
        `tensor ${name} must hold ${show(values)}, got ${show(got)}`,
      )
    }
  }
}
