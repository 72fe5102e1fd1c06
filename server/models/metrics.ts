import type { Metric, Registry } from 'prom-client'
import type { RankerStats } from '../../falcon/types.js'
import { addScraped, type Scraped } from '../scraped.js'
import type { LoadedModel } from './source.js'

type Models = () => readonly LoadedModel[]

export type PerModel = Omit<Scraped, 'read'> & {
  /** Of one model; undefined for what it does not have. */
  readonly read: (stats: RankerStats) => ReturnType<Scraped['read']>
}

/** Adds a metric of what each loaded model counts itself, by `model`. */
export function addPerModel(registry: Registry, models: Models, metric: PerModel): void {
  const { read, labelNames = [], ...rest } = metric
  addScraped(registry, {
    ...rest,
    labelNames: ['model', ...labelNames],
    read: () =>
      models().flatMap(({ id: model, ranker }) => {
        const found = read(ranker.stats())
        if (found === undefined) return []
        const samples = typeof found === 'number' ? [{ labels: {}, value: found }] : found
        return samples.map(({ labels, value }) => ({ labels: { model, ...labels }, value }))
      }),
  })
}

/** What is loaded, and what it is called. */
export function addModelMetrics(registry: Registry, models: Models): void {
  addScraped(registry, {
    kind: 'gauge',
    name: 'model_info',
    help: 'The models that are loaded',
    labelNames: ['name', 'version', 'precision', 'engine'],
    read: () =>
      models().map(({ ranker: { model } }) => {
        const { name, version, precision, engine } = model
        return { labels: { name, version, precision, engine }, value: 1 }
      }),
  })
  addScraped(registry, {
    kind: 'gauge',
    name: 'model_label',
    help: 'Which version of a model is stable, canary or shadow',
    labelNames: ['model', 'label'],
    read: () =>
      models().flatMap(({ id: model, labels }) =>
        labels.map((label) => ({ labels: { model, label }, value: 1 })),
      ),
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
