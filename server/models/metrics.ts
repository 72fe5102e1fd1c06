import { basename } from 'node:path'
import { type Counter, Gauge, type Metric, type Registry } from 'prom-client'
import type { RankerStats } from '../../falcon/types.js'
import type { LoadedModel } from './source.js'

type Models = () => readonly LoadedModel[]

/** Adds metrics of what each loaded model counts itself; no sample where it has none. */
export function perModelMetrics(registry: Registry, models: Models) {
  return (
    Kind: typeof Gauge | typeof Counter,
    name: string,
    help: string,
    read: (stats: RankerStats) => number | undefined,
  ): void => {
    const metric = new Kind({
      name: `peregrine_${name}`,
      help,
      labelNames: ['model'],
      registers: [registry],
      collect() {
        metric.reset()
        for (const { id, ranker } of models()) {
          const value = read(ranker.stats())
          if (value !== undefined) metric.inc({ model: id }, value)
        }
      },
    })
  }
}

/** What is loaded, and what it is called. */
export function addModelMetrics(registry: Registry, models: Models): void {
  const registers = [registry]
  new Gauge({
    name: 'peregrine_model_info',
    help: 'The models that are loaded',
    labelNames: ['name', 'version', 'precision', 'engine'],
    registers,
    collect() {
      this.reset()
      for (const { ranker } of models()) {
        const { name, version, precision, engine } = ranker.model
        this.set({ name, version, precision, engine }, 1)
      }
    },
  })
  new Gauge({
    name: 'peregrine_model_label',
    help: 'Which version of a model is stable, canary or shadow',
    labelNames: ['model', 'label'],
    registers,
    collect() {
      this.reset()
      for (const { id, labels } of models()) {
        for (const label of labels) this.set({ model: id, label }, 1)
      }
    },
  })
  new Gauge({
    name: 'peregrine_kernels_info',
    help: 'The kernel library in use, and what it multiplies in; none where the graphs’ functions run',
    labelNames: ['model', 'library', 'arithmetic'],
    registers,
    collect() {
      this.reset()
      for (const { id, ranker } of models()) {
        const { kernels } = ranker.stats().engine
        if (kernels === undefined) continue
        const { library, arithmetic } = kernels
        this.set({ model: id, library: basename(library), arithmetic }, 1)
      }
    },
  })
}

/** Removes the samples of a model that is gone: labels stay bounded by what is loaded. */
export async function removeModel(metric: Metric, model: string): Promise<void> {
  const { values } = await metric.get()
  for (const { labels } of values) {
    if (labels.model !== model) continue
    const { le, ...own } = labels
    metric.remove(own)
  }
}
